"""Certifies that a quantised folder is as far from the floats that it was made from as its gate has measured."""

import gc
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from convert import export_files
from convert.config import CONFIG, read_fields
from convert.staged_folder import CERTIFICATE
from convert.verifying.checks import Check
from convert.verifying.report import to_json
from convert.versions import QUANTISING, versions_of
from stellarbyte.errors import UserError, shown
from stellarbyte.files import holds, write_text
from stellarbyte.places import Place
from stellarbyte.quantised import is_quantised
from stellarbyte.reading import read_json_object

_REPORT = "quantization.json"
# Files that a model's text goes through, which quantising leaves as they are.
_SAME_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "chat_template.jinja"),
    "generation_config.json",
)


def is_quantised_folder(folder: Path) -> bool:
    """Whether a folder's config.json says that its weights are quantised."""
    return (folder / CONFIG).is_file() and is_quantised(read_fields(folder))


def verify(left: Place, folder: Path, *, prompts: Sequence[str] | None, called: str) -> dict[str, Any]:
    """Compares a folder that `stellarbyte quantize` wrote with the folder of floats that it was made from.

    The tolerance is the folder's own: quantization.json has token ids and how far the two were from each other there,
    and now they must be as far. Writes certificate.json into the folder, and returns the certificate.

    Raises:
        UserError: `left` is no folder of floats, the quantised one has no report, or one of the two cannot be loaded.
    """
    if not isinstance(left, Path) or not (left / CONFIG).is_file():
        raise UserError(f"{called} is quantised, and {left} is no folder of floats: name that which it was made from")
    if prompts is not None:
        raise UserError(f"{called} is quantised, and compared on text that its {_REPORT} holds: leave --prompts out")
    report = read_json_object(folder / _REPORT)
    checks = [_config(left, folder), _files(left, folder), _as_written(folder), _probe(left, folder, report)]
    differences = [sentence for check in checks for sentence in check.differences]
    certificate = {
        "verdict": "FAIL" if differences else "PASS",
        "format": 1,
        "differences": differences,
        "first": f"{left}, quantised",
        "folder": called,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions_of(*QUANTISING),
        "checks": [check.record() for check in checks],
    }
    write_text(folder / CERTIFICATE, to_json(certificate) + "\n")
    return certificate


def _config(left: Path, folder: Path) -> Check:
    ours, theirs = read_fields(left), read_fields(folder)
    names = sorted((ours.keys() | theirs.keys()) - {"quantization_config", "transformers_version"})
    differences = [
        f"{name} is {shown(ours.get(name))} in the floats, but {shown(theirs.get(name))} in the quantised folder"
        for name in names
        if ours.get(name) != theirs.get(name)
    ]
    return Check("config", "the same but for quantization_config", differences=differences)


def _files(left: Path, folder: Path) -> Check:
    there = [name for name in _SAME_FILES if (left / name).is_file()]
    changed = [name for name in there if not holds(folder / name, (left / name).read_bytes())]
    differences = [f"{name} is not that of the floats: quantise again" for name in changed]
    return Check("small files", ", ".join(there), differences=differences)


def _as_written(folder: Path) -> Check:
    changed = export_files.changed_since_export(folder)
    differences = [f"{name} is not as it was written: quantise again" for name in changed]
    return Check("sha256 of each file", "as they were written", differences=differences)


def _probe(left: Path, folder: Path, report: dict[str, Any]) -> Check:
    """Measures both models on the rows in the report, and compares that with what the report says."""
    from stellarbyte_torch.model_folder import load_model
    from stellarbyte_torch.quantization.gate import compare, reference

    kl, tolerance, rows_NT = _expected(folder, report)
    model: Any = load_model(left, "cpu")
    if int(rows_NT.max()) >= model.config.vocab_size:
        raise UserError(f"{left} has a vocabulary of {model.config.vocab_size}: it is not what {folder} was made from")
    before = reference(model, rows_NT)
    del model
    gc.collect()
    found = compare(load_model(folder, "cpu"), before)
    figures = {"kl": found.kl, "expected_kl": kl, "tolerance": tolerance, "top_1_agreement": found.top_1}
    differences = []
    if not abs(found.kl - kl) <= tolerance * kl + 1e-7:
        differences.append(
            f"the divergence of the two is {found.kl:.3e} nats a token on the {rows_NT.numel()} tokens in {_REPORT}, "
            f"where {kl:.3e} was measured: one of the two folders is another"
        )
    text = f"{found.kl:.3e} nats a token, {kl:.3e} when it was quantised; the same likeliest token {found.top_1:.2%}"
    return Check("divergence", text, figures, differences)


def _expected(folder: Path, report: dict[str, Any]) -> tuple[float, float, Any]:
    import torch

    probe: Any = report.get("probe")
    with suppress(KeyError, TypeError, ValueError, RuntimeError):
        rows_NT = torch.tensor(probe["rows"], dtype=torch.int64)
        kl, tolerance = float(probe["kl"]), float(probe["tolerance"])
        if rows_NT.ndim == 2 and rows_NT.shape[1] > 1 and int(rows_NT.min()) >= 0 and 0 <= tolerance < 1:
            return kl, tolerance, rows_NT
    raise UserError(f"{folder / _REPORT} has no probe that can be measured again: quantise the model again")
