"""Exports a run's checkpoint as a GGUF file, of the first stock family that the model is one of."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert import exported_tokenizer, gguf_file, given_weights, layer_scale, run_checkpoint, weights
from convert.families import fit
from convert.families.registry import FAMILIES
from convert.gguf_tokenizer import gguf_tokenizer
from convert.run_checkpoint import Step
from convert.shards import Progress
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError, in_full
from stellarbyte.places import Place

# Fields that GGUF, or Transformers' loader of it, has no place for -> the value that both take for granted.
_TAKEN_FOR_GRANTED: Mapping[str, Any] = {
    "rope_scaling": None,
    "sliding_window": None,
    "attention_bias": False,
    "hidden_act": "silu",
}


@dataclass(frozen=True)
class GGUF:
    """A summary of an export: the step in the run, the family, the size of the file, and what is to be told."""

    step: int
    family: str
    nbytes: int
    remarks: tuple[str, ...]


def to_gguf(
    run_dir: Place,
    path: Path,
    *,
    step: Step | None = None,
    dtype: str = "f16",
    ema: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> GGUF:
    """Writes a run's checkpoint as a GGUF file; needs neither torch nor Transformers.

    Args:
        run_dir: the output_dir of a run, or a run directory that `from_hf` made.
        path: the file to write.
        step: the step of the checkpoint, or "best" by the run's validations; the newest by default.
        dtype: the dtype of the matrices, a name in `gguf_file.KINDS`.
        ema: whether to export the moving average of the weights that training.ema_decay keeps.
        force: whether to replace a file that is there.
        progress: is called with the bytes written and the bytes in all.

    Raises:
        UserError: there is no such checkpoint; the model is of no family that llama.cpp knows, or has a field that GGUF
            does not; its tokenizer would make other tokens there; `path` exists; or the file cannot be written.
    """
    gguf_file.import_gguf()
    if path.exists() and not force:
        raise UserError(f"{path} exists already: name another file, or use --force to replace it")
    checkpoint = run_checkpoint.load(run_dir, step, ema=ema)
    where = f"the checkpoint of step {checkpoint.step} in {run_dir}"
    config = checkpoint.config
    family = _family(config, where)
    files = exported_tokenizer.for_hugging_face(checkpoint.tokenizer_files, config.context_length)
    tokenizer = gguf_tokenizer(files, config.vocab_size, where)
    if config.layer_scale_init is None:
        tensors = weights.to_hf(checkpoint.params, config, "float32", where)
    else:
        tensors = layer_scale.to_hf_folded(checkpoint.params, config, "float32", where)
    tensors = given_weights.finite(tensors, where)
    nbytes = gguf_file.write(path, fit.exported(config), family, tensors, tokenizer, dtype, progress)
    remarks = [f"the tokenizer {change}, and llama.cpp does not" for change in tokenizer.changes]
    return GGUF(checkpoint.step, family, nbytes, tuple(remarks))


def _family(config: ByteConfig, where: str) -> str:
    """The first family in `gguf_file.ARCHITECTURES` that the model is one of. Raises UserError if there is none."""
    for name, value in _TAKEN_FOR_GRANTED.items():
        if getattr(config, name) != value:
            raise UserError(
                f"{where} has {name} {in_full(getattr(config, name))}, which readers of GGUF do not "
                f"learn from it: export it by `stellarbyte convert to-hf`, or train with {name} {in_full(value)}"
            )
    fits = {name: fit.fit(FAMILIES[name], config) for name in gguf_file.ARCHITECTURES}
    for name, found in fits.items():
        if not found.misfits:
            return name
    nearest = min(fits.values(), key=lambda found: len(found.misfits))
    reasons = "; ".join(misfit.reason for misfit in nearest.misfits)
    raise UserError(
        f"{where} is of no family that llama.cpp knows. It is no {nearest.family.architecture}: {reasons}. "
        "Export it by `stellarbyte convert to-hf`"
    )
