"""Checks a fine-tuning config and reports what its run would find here, without making or downloading anything."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, TrainingArguments

from stellarbyte.chat.template import read_template
from stellarbyte.config.dry_run import DryRun, source_facts, warned
from stellarbyte.config.plain import plain
from stellarbyte.errors import UserError
from stellarbyte.reading import read_json
from stellarbyte.records.sources import files_of_sources
from stellarbyte_torch.data.tokenizer import chat_tokenizer
from stellarbyte_torch.decoder import check_decoder
from stellarbyte_torch.finetune.base_model import load_base_config, load_base_tokenizer, quantizer
from stellarbyte_torch.finetune.checkpoints import newest_checkpoint
from stellarbyte_torch.finetune.config import FinetuneConfig, load_finetune_config
from stellarbyte_torch.finetune.report import is_summary, parameters
from stellarbyte_torch.finetune.run import check_fits
from stellarbyte_torch.finetune.same_run import check_same_run
from stellarbyte_torch.finetune.setup import make_trainable, training_arguments, training_fields
from stellarbyte_torch.finetune.training_values import without_effect
from stellarbyte_torch.lora.modules import adapted_layers
from stellarbyte_torch.model_folder import MISTAKES, first_line

Facts = dict[str, Any]

# Records of one a line are counted if their files have at most this many bytes.
_MOST_BYTES_READ = 1 << 26


def dry_run(path: Path, overrides: Sequence[str] = ()) -> DryRun:
    """The config in a YAML file with overrides applied, and a report on data, tokenizer, model, training and run.

    The config includes our defaults, but not those of PEFT and Transformers. Mistakes in the config itself are refused;
    problems with files, packages and devices of this machine are warnings in the report.

    Raises:
        UserError: where load_finetune_config does; or a training field has no effect, or a target fits no module.
    """
    config = load_finetune_config(path, overrides)
    config = replace(config, training=training_fields(config))
    if (problem := without_effect(config.training)) is not None:
        raise UserError(f"training.{problem}")
    base, model = _model(config)
    data, records = _data(config)
    report = {
        "data": data,
        "tokenizer": _tokenizer(config, base),
        "model": model,
        "training": _training(config, records),
        "run": _run(config),
    }
    return DryRun(plain(config), report)


def _data(config: FinetuneConfig) -> tuple[Facts, int | None]:
    """Facts about the data, and the number of records, or None if counting them would take long."""
    sources = [(source.path, source.format) for source in config.data.sources]
    facts = source_facts(sources)
    records = None if "warnings" in facts else _records(sources)
    return facts | ({} if records is None else {"records": records}), records


def _records(sources: Sequence[tuple[str, str]]) -> int | None:
    paths = [path for _, path in files_of_sources(sources, lambda _: None)]
    if any(path.suffix.lower() not in (".jsonl", ".ndjson") for path in paths):
        return None
    if sum(path.stat().st_size for path in paths) > _MOST_BYTES_READ:
        return None
    count = 0
    for path in paths:
        with path.open("rb") as file:
            count += sum(1 for line in file if line.strip())
    return count


def _tokenizer(config: FinetuneConfig, base: Any) -> Facts:
    name = config.data.tokenizer or config.model
    facts: Facts = {"from": name}
    with warned(facts):
        tokenizer = load_base_tokenizer(name, local_files_only=True)
        facts["vocabulary"] = len(tokenizer)
        facts["chat_template"] = "none"
        template = read_template(config.data.chat_template, "data.chat_template")
        if _has_template(tokenizer, template):
            facts["chat_template"] = config.data.chat_template or "its own"
        if base is not None:
            facts["fits_the_model"] = False
            check_fits(config, base, tokenizer)
            facts["fits_the_model"] = True
    return facts


def _has_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> bool:
    return chat_tokenizer(tokenizer, template).template is not None


def _model(config: FinetuneConfig) -> tuple[Any, Facts]:
    """The base's config, or None if it is not here, and facts about the base and what trains, found without weights.

    Raises:
        UserError: a field of lora or trainable fits nothing in this model.
    """
    facts: Facts = {"base": config.model}
    base = model = None
    with warned(facts):
        base = load_base_config(config.model, local_files_only=True)
        model = _without_weights(config, base)
    if model is None:
        return base, facts
    facts |= {"architecture": type(model).__name__, "model_type": base.model_type}
    for name in ("num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings"):
        if isinstance(value := getattr(base, name, None), int):
            facts[name] = value
    facts["parameters"] = parameters(model)[0]
    if config.quantization != "none":
        facts["quantization"] = config.quantization
        with warned(facts):
            quantizer(config.quantization)
    # Initialising an adapter and quantising a base need the weights and change no shape, so they are left out here.
    lora = None if config.lora is None else {**config.lora, "init_lora_weights": True}
    trained = make_trainable(model, config if lora is None else replace(config, lora=lora, quantization="none"))
    total, count = parameters(trained)
    facts["trained_parameters"] = count
    facts["trained_share"] = f"{count / total:.2%}"
    if isinstance(trained, PeftModel):
        layers = adapted_layers(trained.get_base_model(), "default")
        adapted = Counter((name.rpartition(".")[2], layer.r["default"]) for name, layer in layers.items())
        facts["adapts"] = [{"name": name, "modules": number, "rank": rank} for (name, rank), number in adapted.items()]
    return base, facts


def _without_weights(config: FinetuneConfig, base: Any) -> Any:
    dtype = getattr(base, "dtype", None) if config.dtype == "auto" else getattr(torch, config.dtype)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(base, dtype=dtype or torch.float32, trust_remote_code=False)
    except MISTAKES as error:
        raise UserError(f"model {config.model} cannot be made: {first_line(error)}") from error
    check_decoder(model, f"model {config.model}")
    return model


def _training(config: FinetuneConfig, records: int | None) -> Facts:
    defaults = {field.name: field.default for field in fields(TrainingArguments)}
    given = {**defaults, **config.training}
    facts: Facts = {}
    processes = 1
    with warned(facts):
        arguments = training_arguments(config, {})
        processes = arguments.world_size
        facts |= {"device": str(arguments.device), "processes": processes}
    rows = given["per_device_train_batch_size"] * processes * given["gradient_accumulation_steps"]
    facts["rows_a_step"] = rows
    facts["tokens_a_step_at_most"] = rows * config.data.sequence_length
    steps = None
    if records is not None and not config.data.packing:
        # This is exact if each record makes one sample.
        steps = max(1, math.ceil((records - round(records * config.data.validation_fraction)) / rows))
        facts["steps_an_epoch"] = f"about {steps:,}"
    if given["max_steps"] > 0:
        facts["steps"] = given["max_steps"]
    elif steps is not None:
        facts["steps"] = f"about {math.ceil(steps * given['num_train_epochs']):,}"
    else:
        facts["epochs"] = given["num_train_epochs"]
    return facts


def _run(config: FinetuneConfig) -> Facts:
    run_dir = Path(config.output_dir)
    newest = newest_checkpoint(run_dir)
    step = None if newest is None else int(newest.name.rpartition("-")[2])
    facts: Facts = {"output_dir": config.output_dir, "newest_checkpoint": "none" if step is None else step}
    with warned(facts):
        check_same_run(config, run_dir)
    if config.distill is not None:
        facts["teacher"] = config.distill.teacher
        with warned(facts):
            load_base_config(config.distill.teacher, local_files_only=True)
    facts["would"] = f"start from {config.model}" if step is None else f"go on after step {step}"
    if (run_dir / "summary.json").is_file():
        with warned(facts):
            if is_summary(summary := read_json(run_dir / "summary.json")):
                facts["would"] = f"find that it has ended, after {summary['steps']} steps"
    return facts
