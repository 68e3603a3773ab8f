"""Makes a smaller folder of a Hugging Face folder of our own class."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stellarbyte.errors import UserError, shown
from stellarbyte.folder_lock import folder_lock
from stellarbyte.pruning.choice import check_wanted, choose
from stellarbyte.pruning.recover import Recovery
from stellarbyte.pruning.report import Figures, Report, report
from stellarbyte.pruning.request import Request
from stellarbyte.pruning.scores import scores
from stellarbyte.pruning.times import PROMPT, times
from stellarbyte.quantised import is_quantised
from stellarbyte.records.bad_records import BadRecords
from stellarbyte.records.formats import read_records
from stellarbyte.records.sources import files_of_sources
from stellarbyte_torch.configuration_stellarbyte import ByteConfig
from stellarbyte_torch.finetune.config import load_finetune_config
from stellarbyte_torch.finetune.same_run import result_folder
from stellarbyte_torch.lora.adapters import load_lora
from stellarbyte_torch.model_folder import load_model, load_tokenizer, read_config
from stellarbyte_torch.modeling_stellarbyte import ByteForCausalLM
from stellarbyte_torch.pruning.cutting import cut
from stellarbyte_torch.pruning.importance import measure_importance
from stellarbyte_torch.quantization.gate import held_bytes
from stellarbyte_torch.saving import saved_whole

# Tokens of a row of text, unless the context is shorter; and rows in a batch.
_LENGTH, _ROWS = 512, 4
# A tenth of the rows, and at least this many, is held out to measure losses on.
_HELD_OUT = 2


def prune_folder(
    folder: Path, output: Path, request: Request, *, data: str | None = None, device: str | None = None
) -> list[Report]:
    """Writes the folder's model, pruned to the last of the request's shares, to `output`; returns a report a share.

    Scores are measured on rows of the text `data`, and losses on others of them. With `request.recover` the pruned
    model is then fine-tuned by that config, as a run beside `output`.

    Raises:
        UserError: the folder holds no model of ours in floats, the request does not fit it, there is no text, or
            `output` cannot be written.
    """
    fields = read_config(folder)
    if is_quantised(fields):
        raise UserError(f"{folder} is quantised: prune the folder of floats that it was made from, and quantise that")
    if fields.get("model_type") != ByteConfig.model_type:
        raise UserError(
            f"{folder} is of type {shown(fields.get('model_type'))}, and as a folder only a model of ours is pruned: "
            "make a run of it with `stellarbyte convert from-hf`, and prune that"
        )
    if data is None:
        raise UserError(f"{folder} does not say what text it was trained on: name some with --data")
    recovery, run_dir = request.recovery, output.with_name(f"{output.name}-recovery")
    words = [] if recovery is None else _overrides(recovery, folder, run_dir)
    recovered_to = None if recovery is None else _result(recovery, [*words, "--model", str(folder)], run_dir)
    with folder_lock(output, doing="prune"):
        model: Any = load_model(folder, device, "float32")
        assert isinstance(model, ByteForCausalLM)
        for wanted in request.each():
            check_wanted(vars(model.config), wanted)
        tokenizer = load_tokenizer(folder)
        calibration, held_out = _rows(data, tokenizer, model.config, request)
        reports, smaller = _pruned(model, request, calibration, held_out)
        with saved_whole(output, is_locked=True) as partial:
            smaller.generation_config = model.generation_config
            smaller.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    if recovery is not None and recovered_to is not None:
        del model, smaller  # the training is another process, which needs the device's memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        recovery.train("finetune", [*words, "--model", str(output)], output, reports)
        trained = _trained(output, recovered_to, device)
        where = f"the recovered model is in {recovered_to}"
        if recovered_to.name == "adapter":
            where = f"{recovered_to} recovers {output}: `stellarbyte merge` makes one model of both"
        reports.append(reports[-1].recovered(_figures(trained, held_out), where))
    return reports


def _overrides(recovery: Recovery, folder: Path, run_dir: Path) -> list[str]:
    """What is put over a config for recovery; its model as well."""
    return ["--output_dir", str(run_dir), *(["--distill.teacher", str(folder)] if recovery.distill else [])]


def _result(recovery: Recovery, overrides: list[str], run_dir: Path) -> Path:
    """The folder that fine-tuning will write. Raises UserError if the config is refused, or a run is there already."""
    config = load_finetune_config(recovery.config, overrides)
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise UserError(
            f"{run_dir}, to which --recover writes, exists already: choose another name for the pruned model"
        )
    return result_folder(config, run_dir)


def _trained(pruned: Path, result: Path, device: str | None) -> Any:
    """The model that fine-tuning has made, or the pruned one with the adapter."""
    if result.name != "adapter":
        return load_model(result, device, "float32")
    return load_lora(load_model(pruned, device, "float32"), result)


def _pruned(
    model: ByteForCausalLM, request: Request, calibration: list[Tensor], held_out: list[Tensor]
) -> tuple[list[Report], ByteForCausalLM]:
    """(a report a share, the model of the last one)."""
    fields, smaller, reports = vars(model.config), model, []
    batches = ({"input_ids": rows, "labels": rows} for rows in _batches(calibration, model.device))
    found = scores(measure_importance(model, batches), request.importance)
    before = _figures(model, held_out)
    for wanted in request.each():
        choice = choose(fields, found, wanted)
        smaller = cut(model, choice.cuts)
        reports.append(report(fields, choice, wanted.keep, wanted.by, before, _figures(smaller, held_out)))
    return reports, smaller


def _rows(data: str, tokenizer: Any, config: ByteConfig, request: Request) -> tuple[list[Tensor], list[Tensor]]:
    """(rows to measure scores on, held-out rows), int64 [T] each, of the text in files of any format that is read."""
    length = min(_LENGTH, config.max_position_embeddings)
    ids: list[int] = []
    first = [] if config.bos_token_id is None else [config.bos_token_id]
    wanted = (request.samples + max(_HELD_OUT, request.samples // 9 + 1)) * length
    for text in _texts(data):
        ids += [*first, *tokenizer.encode(text, add_special_tokens=False)]
        if len(ids) >= wanted:
            break
    rows = list(torch.tensor(ids[: len(ids) // length * length]).long().reshape(-1, length))
    held_out = max(_HELD_OUT, len(rows) // 10)
    if len(rows) <= held_out:
        raise UserError(
            f"--data {data} has {len(ids)} tokens, and {(held_out + 1) * length} are needed: name more text"
        )
    return rows[:-held_out][: request.samples], rows[-held_out:]


def _texts(data: str) -> Iterator[str]:
    """The texts in the files that `data` names, read one after the other."""
    for _, path in files_of_sources([(data, data)], report=lambda _: None):
        for record in read_records(path, BadRecords("fail")):
            text = record.fields.get("text")
            if isinstance(text, str):
                yield text


def _batches(rows: list[Tensor], device: torch.device) -> Iterator[Tensor]:
    for start in range(0, len(rows), _ROWS):
        yield torch.stack(rows[start : start + _ROWS]).to(device)


@torch.no_grad()
def _figures(model: Any, held_out: list[Tensor]) -> Figures:
    loss, tokens = 0.0, 0
    for rows in _batches(held_out, model.device):
        count = rows[:, 1:].numel()
        loss += float(model(rows, labels=rows, use_cache=False).loss) * count
        tokens += count
    mean = torch.tensor(loss / tokens, dtype=torch.float64)
    prefill, decode = _times(model, held_out[0])
    return Figures.of(
        vars(model.config),
        nbytes=held_bytes(model),
        loss=float(mean),
        perplexity=float(mean.exp()),
        prefill_seconds=prefill,
        decode_seconds=decode,
    )


def _times(model: Any, row_T: Tensor) -> tuple[float, float]:
    """See stellarbyte.pruning.times."""
    prompt = row_T[None, : min(PROMPT, len(row_T) // 2)].to(model.device)

    def generate(new: int) -> int:
        options: Any = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        model.generate(prompt, **options)
        return new

    return times(generate, model.config.max_position_embeddings - prompt.shape[1])
