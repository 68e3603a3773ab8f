"""Certifies that an export is the run's model, to the last bit and token."""

import hashlib
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from convert import config as hf_config
from convert import (
    export_files,
    given_weights,
    hf_checkpoint,
    layer_scale,
    run_checkpoint,
    shards,
    staged_folder,
    weights,
)
from convert.given_folder import check_links
from convert.run_checkpoint import RunCheckpoint, Step
from convert.staged_folder import CERTIFICATE
from convert.two_sides import JaxSide, Side, TokenIds, TorchSide, require_torch
from convert.weights import DTYPES, Tensor
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError
from stellarbyte.files import holds, write_text
from stellarbyte.places import Place
from stellarbyte.reading import MIB, read_text
from stellarbyte_jax.config_file import differing_fields
from stellarbyte_jax.data.tokenizer import Tokenizer

# Largest difference of two logits, in units of the largest logit: law 3 of the design, in float32.
LOGITS_TOLERANCE = 1e-5

MAX_NEW_TOKENS = 32

# Nothing at all, prose, code, digits and blanks, and other scripts: a byte-level vocabulary can write all of them.
DEFAULT_PROMPTS = (
    "",
    "Once upon a time there was a star that wanted to be a byte, and",
    'def main() -> None:\n    """Return',
    "In 1969, 3.14159 * 2 =\t",
    "床前明月光,疑是地上霜。",
    "L'été, où naît la forêt… 🌲 ",
)

_LIBRARIES = ("stellarbyte", "jax", "flax", "numpy", "safetensors", "tokenizers", "torch", "transformers")


def verify(
    run_dir: Place, hf_dir: Path, *, step: Step | None = None, prompts: Sequence[str] | None = None
) -> dict[str, Any]:
    """Compares a run with its export, writes HF_DIR/certificate.json and returns its content.

    `verdict` is "equal" or "different"; `differences` has a sentence for each difference. An export with LayerScale
    folded in is compared with the run's folded weights, and its logits with those of the run as it is.

    Both sides choose the same experts for a token, also at exact ties. But float32 sums depend on their order, so where
    two experts' scores are as near as rounding, the sides may choose differently, and the logits there differ by more
    than the tolerance. That is reported like any other difference.

    Args:
        run_dir: the output_dir of the run.
        hf_dir: the folder that `to-hf` wrote.
        step: the step of the checkpoint, or "best"; by default the one that the export names, else the newest.
        prompts: the prompts whose logits and continuations are compared; by default `DEFAULT_PROMPTS`.

    Raises:
        UserError: torch is not installed; there is no such run or step; the folder has another architecture or cannot
            be loaded; the context has no room for a prompt.
    """
    require_torch()
    check_links(hf_dir)
    config = hf_config.read_hf(hf_dir)
    dtype = hf_config.read_json(hf_dir / hf_config.CONFIG).get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{hf_dir / hf_config.CONFIG} names the dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    stored = given_weights.one_of_tied(shards.read(hf_dir), config, str(hf_dir))
    ema = (staged_folder.read_manifest(hf_dir) or {}).get("ema") is True
    checkpoint = run_checkpoint.load(run_dir, _exported_step(hf_dir) if step is None else step, ema=ema)
    folded = layer_scale.is_folded(checkpoint.config, config)
    expected = layer_scale.without_layer_scale(checkpoint.config) if folded else checkpoint.config
    derived = (layer_scale.to_hf_folded if folded else weights.to_hf)(checkpoint.params, checkpoint.config, dtype)

    differences = _config_differences(expected, config) + _modeling_differences(hf_dir)
    hashes, tensor_differences = _compare_tensors(derived, stored)
    differences += tensor_differences
    certificate: dict[str, Any] = {
        "run": str(run_dir),
        "step": checkpoint.step,
        "dtype": dtype,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        "layer_scale_folded": folded,
        "ema": ema,
        "tensors": hashes,
    }
    if config == expected and derived.keys() == stored.keys():
        if dtype != "float32":  # then the values of the export are compared, rounded as they are
            checkpoint = replace(checkpoint, params=weights.from_hf(derived, expected, "float32"), config=expected)
        comparison = _compare_behaviour(checkpoint, hf_dir, prompts)
        differences += comparison.differences or export_files.differences(checkpoint, hf_dir, DEFAULT_PROMPTS[1])
        certificate |= {"logits": comparison.logits, "prompts": comparison.prompts}
    verdict = {"verdict": "different" if differences else "equal", "differences": differences}
    certificate = verdict | certificate
    write_text(hf_dir / CERTIFICATE, to_json(certificate) + "\n")
    return certificate


def summary(certificate: Mapping[str, Any]) -> str:
    """The certificate in one sentence."""
    differences = certificate["differences"]
    if differences:
        others = f" (and {len(differences) - 1} more differences)" if len(differences) > 1 else ""
        return f"different: {differences[0]}{others}"
    logits = certificate["logits"]
    folded = " (LayerScale folded in)" if certificate["layer_scale_folded"] else ""
    folded += " (the average of the weights)" if certificate["ema"] else ""
    return (
        f"equal: {len(certificate['tensors'])} tensors bit for bit{folded}, "
        f"logits at {logits['positions']} positions within {logits['max_relative_error']:.1e} of the largest, "
        f"{len(certificate['prompts'])} greedy continuations token for token"
    )


def to_json(certificate: Mapping[str, Any]) -> str:
    """The certificate as JSON for people: a list of token ids stands on one line."""
    text = json.dumps(certificate, indent=2, ensure_ascii=False)
    # No string holds a raw line break, so this matches lists of numbers alone.
    return re.sub(r"\[\n\s+((?:\d+,\n\s+)*\d+)\n\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text)


def read_prompts(path: Path) -> list[str]:
    """The lines of a file, each a prompt. Raises UserError if there are none, or the file is no text."""
    prompts = [line for line in read_text(path, 16 * MIB).splitlines() if line]
    if not prompts:
        raise UserError(f"{path} holds no prompt: write one a line")
    return prompts


def _exported_step(hf_dir: Path) -> int | None:
    manifest = staged_folder.read_manifest(hf_dir)
    step = manifest.get("step") if manifest else None
    return step if type(step) is int else None


def _config_differences(run: ByteConfig, export: ByteConfig) -> list[str]:
    return [
        f"{name} is {ours!r} in the run, but {theirs!r} in the export"
        for name, ours, theirs in differing_fields(run, export)
    ]


def _modeling_differences(hf_dir: Path) -> list[str]:
    # The installed code is run below, never the folder's, which may come from a stranger.
    return [
        f"{path.name} in the export is not that of the installed StellarByte: export again"
        for path in hf_checkpoint.modeling_files()
        if not holds(hf_dir / path.name, path.read_bytes())
    ]


def _compare_tensors(run: Mapping[str, Tensor], export: Mapping[str, Tensor]) -> tuple[dict[str, str], list[str]]:
    """(key -> hash of each tensor of the export, a sentence for each tensor that is not the run's bit for bit)."""
    hashes = {key: _hash(tensor) for key, tensor in export.items()}
    differences = [f"the export lacks {key}" for key in run if key not in export]
    differences += [f"the run has no {key}, which the export holds" for key in export if key not in run]
    for key in run.keys() & export.keys():
        if (run[key].shape, run[key].dtype) != (export[key].shape, export[key].dtype):
            differences.append(f"{key} is {_kind(run[key])} in the run, but {_kind(export[key])} in the export")
        elif _hash(run[key]) != hashes[key]:
            differences.append(f"the values of {key} are not those of the run")
    return hashes, sorted(differences)


def _hash(tensor: Tensor) -> str:
    # The values are viewed as bytes, because Python's buffers do not know bfloat16.
    return hashlib.sha256(np.asarray(tensor).reshape(-1).view(np.uint8).data).hexdigest()


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape)}"


@dataclass(frozen=True)
class _Comparison:
    differences: list[str]
    logits: dict[str, Any]
    prompts: list[dict[str, Any]]


def _compare_behaviour(checkpoint: RunCheckpoint, hf_dir: Path, prompts: Sequence[str] | None) -> _Comparison:
    """Asks both sides for tokens, greedy continuations, and the logits of prompt and continuation."""
    config, tokenizer = checkpoint.config, Tokenizer(checkpoint.tokenizer_files, "of the run")
    # One side is asked after the other, so that a large model is in memory only once.
    texts = DEFAULT_PROMPTS if prompts is None else prompts
    side: Side = JaxSide(checkpoint.params, config, tokenizer)
    token_ids = side.encode(texts)
    starts, max_new_tokens = _fit(texts, token_ids, config, shorten=prompts is None)
    our_answers = side.greedy(starts, max_new_tokens)
    whole = [start + answer for start, answer in zip(starts, our_answers, strict=True)]
    our_logits = side.logits(whole)
    del side
    side = TorchSide(hf_dir)
    their_answers, their_logits = side.greedy(starts, max_new_tokens), side.logits(whole)
    differences = [
        f"the tokenizers turn the prompt {text!r} into different tokens"
        for text, a, b in zip(texts, token_ids, side.encode(texts), strict=True)
        if a != b
    ]
    logits = _compare_logits(our_logits, their_logits)
    relative = logits["max_relative_error"]
    if relative is None or relative > LOGITS_TOLERANCE:
        amount = "nan" if relative is None else f"{relative:.1e} of the largest"
        routed = ", unless two experts score the same to rounding" if config.num_experts else ""
        differences.append(f"logits differ by {amount}, more than the {LOGITS_TOLERANCE:g} that float32 allows{routed}")
    for text, start, a, b, scores in zip(texts, starts, our_answers, their_answers, our_logits, strict=True):
        if a != b:
            differences.append(_first_parting(text, a, b, scores[len(start) - 1 :], config.eos_token_id))
    records = [
        {"text": text, "tokens": start, "jax": a, "torch": b, "jax_text": tokenizer.decode(a)}
        for text, start, a, b in zip(texts, starts, our_answers, their_answers, strict=True)
    ]
    return _Comparison(differences, logits, records)


def _compare_logits(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> dict[str, Any]:
    """How far logits are apart. Errors are None if a logit is not finite, because JSON has no number for that."""
    a, b = np.concatenate(ours), np.concatenate(theirs)
    error = float(np.abs(a - b).max()) if np.isfinite(a).all() and np.isfinite(b).all() else None
    largest = max(float(np.abs(b).max()), float(np.finfo(np.float32).tiny))
    return {
        "positions": len(a),
        "max_absolute_error": error,
        "max_relative_error": None if error is None else error / largest,
        "tolerance": LOGITS_TOLERANCE,
    }


def _fit(
    texts: Sequence[str], token_ids: Sequence[TokenIds], config: ByteConfig, shorten: bool
) -> tuple[list[TokenIds], int]:
    """(bos + prompt for each, cut to half the context if `shorten`; how many tokens fit behind the longest)."""
    context = config.max_position_embeddings
    starts = [[config.bos_token_id, *ids] for ids in token_ids]
    if shorten:
        starts = [start[: max(1, context // 2)] for start in starts]
    for text, start in zip(texts, starts, strict=True):
        if len(start) >= context:
            raise UserError(
                f"the prompt {text[:40]!r}… has {len(start)} tokens with its beginning, too many for a context of "
                f"{context} that must hold the answer, too: shorten it"
            )
    return starts, min(MAX_NEW_TOKENS, context - max(map(len, starts)))


def _first_parting(text: str, a: TokenIds, b: TokenIds, scores_TV: np.ndarray, eos_token_id: int) -> str:
    """A sentence on where two continuations differ first, and how far apart the two choices are in JAX's logits."""
    a, b = [*a, eos_token_id], [*b, eos_token_id]
    at = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    margin = float(scores_TV[at, a[at]] - scores_TV[at, b[at]])
    return (
        f"after the prompt {text!r}, greedy token {at + 1} is {a[at]} in JAX, but {b[at]} in PyTorch "
        f"(their logits in JAX are {margin:.1e} apart)"
    )
