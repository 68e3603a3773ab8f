"""Certifies that an export is the run's model, to the last bit and token, or that two folders hold the same model."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from convert import hf_checkpoint
from convert.config import CONFIG, MODEL_TYPE
from convert.run_checkpoint import Step
from convert.shards import Progress
from convert.staged_folder import CERTIFICATE, PICTURE
from convert.verifying import behaviour, tensors, texts
from convert.verifying.behaviour import Behaviour
from convert.verifying.checks import Check
from convert.verifying.folders import Folder, open_folder
from convert.verifying.picture import errors_chart
from convert.verifying.report import to_json
from convert.verifying.side import TokenIds
from convert.verifying.subjects import Subject, open_other, open_run
from convert.versions import versions_of
from stellarbyte.errors import UserError
from stellarbyte.files import holds, write_text
from stellarbyte.looks.picture import picture
from stellarbyte.places import Place
from stellarbyte.reading import MIB, read_text

FORMAT = 1
"""The number of the certificate's form; it counts up when a field changes its meaning."""

MAX_NEW_TOKENS = 64

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

# How often all weights of a side are used; the folder's once more for each new token.
_PASSES_OF_OURS, _PASSES_OF_THEIRS = 5, 9


def verify(
    left: Place,
    hf_dir: Path,
    *,
    step: Step | None = None,
    prompts: Sequence[str] | None = None,
    progress: Progress | None = None,
    called: str | None = None,
) -> dict[str, Any]:
    """Compares a folder with the run that it was exported from, or with another folder.

    Writes certificate.json into the folder, and certificate.svg if matplotlib is installed; returns the certificate.
    `verdict` is "PASS" or "FAIL", `checks` has the figures of each check, and `differences` a sentence for each thing
    that is wrong. Weights are read a layer at a time. While tokens are read one by one, as many stay in memory as two
    of the folder's files hold, less the largest part of the model; else those of one part of one side, and a layer's
    gradients of the other.

    An export with LayerScale folded in is compared with the run's folded weights, and its logits with those of the run
    as it is.

    Both sides choose the same experts for a token, also at exact ties. But float32 sums depend on their order, so where
    two experts' scores are as near as rounding, the sides may choose differently, and the logits there differ by more
    than the tolerance. That is reported like any other difference.

    Args:
        left: the output_dir of the run, or a Hugging Face folder.
        hf_dir: the folder that `to-hf` wrote, or one of another model that Transformers has.
        step: the step of the checkpoint, or "best"; by default the one that the export names, else the newest.
        prompts: the prompts whose logits and continuations are compared; by default `DEFAULT_PROMPTS`.
        progress: is called with the bytes of weights that have been used, and how many will be.
        called: what the certificate calls the folder; by default its path.

    Raises:
        UserError: torch is not installed; there is no such run or step; a folder cannot be loaded; the context has no
            room for a prompt.
    """
    require_torch()
    clock = _Clock()
    folder = open_folder(hf_dir)
    subject = _open_left(left, step, folder)
    names = (subject.name, subject.other)
    checks = [subject.config_check, *_code(folder)]
    used = _counter(progress, subject, folder)
    if subject.tensors is None:
        types = "they are of different types, whose tensors have other keys"
        checks += [Check("keys and shapes", skipped=types), Check("sha256 of each tensor", skipped=types)]
    else:
        keys = tensors.compare_keys(subject.tensors, folder.tensors, names)
        checks.append(keys if folder.tied_apart is None else _with_difference(keys, folder.tied_apart))
        with clock.timing("sha256"):
            checks.append(tensors.compare_bits(subject.tensors, folder.tensors, names, used))
    our_texts = subject.texts()
    asked = DEFAULT_PROMPTS if prompts is None else prompts
    starts, new_tokens = _fit(asked, our_texts, subject, shorten=prompts is None)
    with clock.timing("behaviour"):
        found = _behaviour(subject, folder, starts, new_tokens, used, differing=any(c.differences for c in checks))
    with clock.timing("texts"):
        checks += [*found.checks, *texts.compare(our_texts, texts.FolderTexts(hf_dir), asked, names), *subject.files()]

    differences = [sentence for check in checks for sentence in check.differences]
    certificate = {
        "verdict": "FAIL" if differences else "PASS",
        "format": FORMAT,
        "differences": differences,
        **subject.about,
        "folder": called or str(hf_dir),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": clock.seconds(),
        "versions": versions_of(*_LIBRARIES),
        "checks": [check.record() for check in checks],
        "errors_by_layer": {"hidden_states": found.hidden_errors, "gradients": found.gradient_errors},
        "prompts": _prompts(asked, starts, found, our_texts),
    }
    write_text(hf_dir / CERTIFICATE, to_json(certificate) + "\n")
    limits = (behaviour.TOLERANCE, behaviour.GRADIENT_TOLERANCE)
    title = f"{certificate['verdict']}: the largest error after each layer, {hf_dir.name}"
    chart = errors_chart(title, found.hidden_errors, found.gradient_errors, limits)
    try:
        write_text(hf_dir / PICTURE, picture(chart))
    except ModuleNotFoundError:  # without matplotlib there is none, and an older one would be of other weights
        (hf_dir / PICTURE).unlink(missing_ok=True)
    return certificate


def read_prompts(path: Path) -> list[str]:
    """The lines of a file, each a prompt. Raises UserError if there are none, or the file is no text."""
    prompts = [line for line in read_text(path, 16 * MIB).splitlines() if line]
    if not prompts:
        raise UserError(f"{path} holds no prompt: write one a line")
    return prompts


def is_model_folder(path: Place) -> bool:
    """Whether this is a Hugging Face folder, no run."""
    return (path / CONFIG).is_file()


def require_torch() -> None:
    """Raises UserError with the command to run if torch or transformers is missing."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"verify compares with PyTorch, but {error.name} is not installed: pip install 'stellarbyte[torch]'"
        ) from error


def _open_left(left: Place, step: Step | None, folder: Folder) -> Subject:
    if not is_model_folder(left):
        return open_run(left, step, folder)
    if step is not None:
        raise UserError(f"--step {step} names a checkpoint, but {left} is a model's folder: leave --step out")
    assert isinstance(left, Path), "a folder in a bucket is fetched before"
    return open_other(open_folder(left), folder)


def _code(folder: Folder) -> list[Check]:
    # The installed code is run below, never the folder's, which may come from a stranger.
    if folder.model_type != MODEL_TYPE:
        return []
    differences = [
        f"{path.name} in the export is not that of the installed StellarByte: export again"
        for path in hf_checkpoint.modeling_files()
        if not holds(folder.path / path.name, path.read_bytes())
    ]
    return [Check("modeling files", "those of the installed StellarByte", differences=differences)]


def _behaviour(
    subject: Subject,
    folder: Folder,
    starts: Sequence[TokenIds],
    new_tokens: int,
    used: Callable[[int], None],
    *,
    differing: bool,
) -> Behaviour:
    """What both models compute. If they differ already, the folder's model may be impossible to load or to compare."""
    sizes, theirs = subject.sizes, folder.sizes
    reason = None
    for name in ("vocab_size", "layers", "hidden_size"):
        if getattr(sizes, name) != getattr(theirs, name):
            reason = (
                f"{name.replace('_', ' ')} is {getattr(sizes, name)} in one, but {getattr(theirs, name)} in another"
            )
    if reason is None:
        try:
            their_side = folder.side(used)
        except UserError as error:
            if not differing:
                raise
            reason = str(error)
    if reason is not None:
        difference = [] if differing else [f"{reason}, so the two cannot be compared"]
        return Behaviour([Check("behaviour", differences=difference, skipped=reason)])
    differentiated = None if subject.differentiated is None else subject.differentiated(used)
    pad = subject.token_id("pad_token_id") or 0
    return behaviour.compare(
        subject.side(used),
        their_side,
        starts,
        new_tokens,
        sizes,
        pad,
        differentiated=differentiated,
        routed=subject.routed,
    )


def _fit(
    asked: Sequence[str], our_texts: texts.Texts, subject: Subject, *, shorten: bool
) -> tuple[list[TokenIds], int]:
    """(bos + prompt for each, cut to half the context if `shorten`; how many tokens fit behind the longest)."""
    context = subject.sizes.context
    first = subject.token_id("bos_token_id")
    if first is None:  # a row must begin with something
        first = subject.token_id("eos_token_id") or 0
    starts = [[first, *ids] for ids in our_texts.encode(asked)]
    if shorten:
        starts = [start[: max(1, context // 2)] for start in starts]
    for text, start in zip(asked, starts, strict=True):
        if len(start) >= context:
            raise UserError(
                f"the prompt {text[:40]!r}… has {len(start)} tokens with its beginning, too many for a context of "
                f"{context} that must hold the answer, too: shorten it"
            )
    return starts, min(MAX_NEW_TOKENS, context - max(map(len, starts)))


def _prompts(
    asked: Sequence[str], starts: Sequence[TokenIds], found: Behaviour, our_texts: texts.Texts
) -> list[dict[str, Any]]:
    if found.tokens is None:
        return []
    answers = found.tokens.tolist()
    return [
        {"text": text, "tokens": start, "continuation": answer, "continuation_text": our_texts.decode(answer)}
        for text, start, answer in zip(asked, starts, answers, strict=True)
    ]


def _with_difference(check: Check, sentence: str) -> Check:
    return Check(check.name, check.shown, check.figures, [*check.differences, sentence])


def _counter(progress: Progress | None, subject: Subject, folder: Folder) -> Callable[[int], None]:
    theirs = sum(tensor.nbytes for tensor in folder.tensors.values())
    ours = theirs if subject.tensors is None else sum(tensor.nbytes for tensor in subject.tensors.values())
    total = _PASSES_OF_OURS * ours + (_PASSES_OF_THEIRS + MAX_NEW_TOKENS) * theirs
    done = 0

    def used(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(min(done, total), total)

    return used


class _Clock:
    """How long the parts of a comparison took."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._parts: dict[str, float] = {}

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._parts[part] = round(time.monotonic() - started, 2)

    def seconds(self) -> dict[str, float]:
        return {**self._parts, "in all": round(time.monotonic() - self._started, 2)}
