"""What a run would find here: its data, tokenizer, devices, shapes and checkpoints, each in a few facts."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from stellarbyte.config.dry_run import DryRun, source_facts, warned
from stellarbyte.evaluation.choices import read_tasks
from stellarbyte.places import BucketPath, place
from stellarbyte_jax.batch_stages import rows_between
from stellarbyte_jax.checkpoints.checkpoint import checkpoint_steps, latest_step
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import to_dict
from stellarbyte_jax.data.agreement import check_described, check_made_with, check_tokenizer_fits
from stellarbyte_jax.data.batch_placement import check_batch, check_micro_batch
from stellarbyte_jax.data.chat_template import chat_template
from stellarbyte_jax.data.documents import RecordText
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.manifest import MANIFEST_NAME, SPLITS, Manifest
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.data.unfinished import load_position, load_recipe
from stellarbyte_jax.planning.parameters import ParameterCounter
from stellarbyte_jax.planning.program import layout_of
from stellarbyte_jax.sharding import axis_across_slices, make_mesh, mesh_sizes
from stellarbyte_jax.training.optimizer import run_optimizer
from stellarbyte_jax.training.same_run import check_init_from, check_same_run
from stellarbyte_jax.training.teacher import find_teacher

Facts = dict[str, Any]


def report_on(config: RunConfig) -> DryRun:
    """The config with its mesh as it would be here, and the report.

    Raises:
        UserError: a template of records that cannot be read, an adapter's module or a parameter that the model does
            not have, or a mesh that cannot train this model, on whatever devices.
    """
    if config.data.kind == "text":
        for source in config.data.sources:
            RecordText(source)
    counter = ParameterCounter(config.model, config.lora)
    run_optimizer(config, counter.abstract)
    sizes, mesh = _mesh(config, counter)
    tokenizer, of_tokenizer = _tokenizer(config)
    manifest, data = _data(config, tokenizer)
    report = {
        "data": data,
        "tokenizer": of_tokenizer,
        "mesh": mesh,
        "shapes": _shapes(config, counter, sizes, manifest),
        "run": _run(config, tokenizer, manifest),
    }
    if config.training.eval_tasks:
        report["tasks"] = _tasks(config)
    if sizes is not None:
        config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, **sizes))
    return DryRun(to_dict(config), report)


def _tokenizer(config: RunConfig) -> tuple[Tokenizer | None, Facts]:
    facts: Facts = {"folder": config.data.tokenizer}
    if not (Path(config.data.tokenizer) / "tokenizer.json").is_file():
        return None, facts | {"state": "absent: `stellarbyte tokenizer train` makes it"}
    with warned(facts):
        tokenizer = Tokenizer.load(config.data.tokenizer)
        facts["vocabulary"] = tokenizer.vocab_size
        facts["fits_the_model"] = False
        check_tokenizer_fits(config.model, tokenizer)
        facts["fits_the_model"] = True
    if "fits_the_model" not in facts:
        return None, facts
    if config.data.kind == "chat":
        with warned(facts):
            own = "its own" if chat_template(tokenizer, config.data.chat_template) is not None else "none"
            facts["chat_template"] = config.data.chat_template or own
    return tokenizer, facts


def _tasks(config: RunConfig) -> Facts:
    """What validations ask."""
    facts: Facts = {}
    with warned(facts):
        facts |= {task.name: f"{len(task.questions):,} questions" for task in read_tasks(config.training.eval_tasks)}
    return facts


def _data(config: RunConfig, tokenizer: Tokenizer | None) -> tuple[Manifest | None, Facts]:
    data, folder = config.data, place(config.data.shards)
    manners = [(s.path, (s.fields, s.template) if data.kind == "text" else s.format) for s in data.sources]
    facts = source_facts(manners)
    missing = "warnings" in facts
    shards: Facts = {"folder": data.shards}
    facts["shards"] = shards
    if not (folder / MANIFEST_NAME).exists():
        shards["state"] = "absent: `stellarbyte prepare` makes them"
        if isinstance(folder, BucketPath):  # nothing is half prepared there
            return None, facts
        with warned(facts):
            recipe = load_recipe(folder, _into(facts))
            reached = None if recipe is None else load_position(folder, recipe, _into(facts))
            if recipe is not None:
                shards["state"] = "unfinished: `stellarbyte prepare` goes on with them"
                shards["tokens"] = 0 if reached is None else sum(state.tokens for state in reached[1].values())
        return None, facts
    shards["state"] = "damaged"
    with warned(facts):
        manifest = Manifest.load(folder)
        shards["state"] = "complete"
        for split in SPLITS:
            counts = manifest.splits[split]
            shards |= {f"{split}_documents": counts.documents, f"{split}_tokens": counts.tokens}
        if manifest.warning is not None:
            _into(facts)(manifest.warning)
        # Without reading the sources: if they were moved, their sizes decide.
        shards["of_these_sources"] = False
        check_described(data, manifest.recipe, with_sources=not missing, most_bytes_read=0)
        shards["of_these_sources"] = True
        if missing:
            del shards["of_these_sources"]
        if tokenizer is not None:
            check_made_with(data, manifest.recipe, tokenizer)
    return (manifest if shards["state"] == "complete" else None), facts


def _mesh(config: RunConfig, counter: ParameterCounter) -> tuple[dict[str, Any] | None, Facts]:
    """(the sizes of the axes, the facts); no sizes if they depend on the devices, and those here do not fit."""
    processes = config.distributed.num_processes or 1
    count, platform = jax.device_count() * processes, jax.default_backend()
    facts: Facts = {"devices": count, "platform": platform}
    if processes > 1:
        facts["processes"] = processes
    sizes: dict[str, int] | None = config.mesh.sizes
    if -1 in config.mesh.sizes.values():
        sizes = None
        with warned(facts):
            sizes = mesh_sizes(config.mesh, count, "devices", "there are")
            _check_mesh(config, sizes, counter, platform)
    else:
        _check_mesh(config, config.mesh.sizes, counter, platform)
        with warned(facts):
            mesh_sizes(config.mesh, count, "devices", "there are")
    if "warnings" not in facts and processes == 1:
        with warned(facts):
            make_mesh(config.mesh)
    if "warnings" in facts:
        facts["runs_here"] = "no; `stellarbyte plan` predicts a run on machines that are not here"
    if sizes is not None:
        facts["axes"] = " ".join(f"{axis}={size}" for axis, size in sizes.items())
    return sizes, facts


def _check_mesh(config: RunConfig, sizes: dict[str, int], counter: ParameterCounter, platform: str) -> None:
    """Refuses a mesh that does not divide the batch, a row or a parameter."""
    if config.mesh.slices > 1:
        axis_across_slices(sizes, config.mesh.slices)
    check_batch(config.training, config.data.sequence_length, layout_of(config, sizes))
    counter.local(config, sizes, platform)


def _shapes(
    config: RunConfig, counter: ParameterCounter, sizes: dict[str, int] | None, manifest: Manifest | None
) -> Facts:
    training, length = config.training, config.data.sequence_length
    facts: Facts = {"parameters": counter.total, "of_these": counter.parts()}
    if counter.active != counter.total:
        facts["parameters_a_token"] = counter.active
    if config.lora is not None:
        facts["trained_parameters"] = counter.parts().get("adapters", 0)
    facts["rows_a_step"] = training.batch_size
    if sizes is not None:
        layout = layout_of(config, sizes)
        with warned(facts):
            axes = {name: layout.mesh.shape[name] for name in layout.mesh_axes("batch")}
            rows = check_micro_batch(training, axes) * training.gradient_accumulation_steps
            facts["rows_a_device_and_step"] = rows
    facts["tokens_a_step"] = training.batch_size * length
    facts["tokens_in_all_steps"] = rows_between(config.stages, 0, training.max_steps) * length
    if manifest is not None and manifest.splits["train"].tokens:
        facts["epochs"] = facts["tokens_in_all_steps"] / manifest.splits["train"].tokens
    return facts


def _run(config: RunConfig, tokenizer: Tokenizer | None, manifest: Manifest | None) -> Facts:
    facts: Facts = {"output_dir": config.output_dir, "checkpoints": checkpoint_steps(config.output_dir)}
    step, last = latest_step(config.output_dir), config.training.max_steps
    if step is not None and tokenizer is not None and manifest is not None:
        with warned(facts):
            check_same_run(config, tokenizer, DataIdentity.of(manifest))
    if config.training.distill is not None:
        facts["teacher"] = config.training.distill.teacher
        with warned(facts):
            find_teacher(config, tokenizer)
    if config.init_from is not None and tokenizer is not None and (step is None or config.lora is not None):
        with warned(facts):
            check_init_from(config, config.init_from, tokenizer)
    if step is None:
        found = None if config.init_from is None else latest_step(config.init_from)
        weights = "fresh weights" if config.init_from is None else f"the weights of {config.init_from}"
        facts["would"] = f"start from {weights}{f', of step {found}' if found is not None else ''}"
    elif step >= last:
        facts["would"] = f"find that it has ended: step {step} of {last} is saved"
    else:
        facts["would"] = f"go on after step {step} of {last}"
    return facts


def _into(facts: Facts) -> Callable[[str], None]:
    return lambda sentence: facts.setdefault("warnings", []).append(sentence)
