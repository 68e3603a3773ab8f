"""Shows samples as a model will see them, with the trained tokens set off from the rest."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import groupby
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from stellarbyte.chat.encoding import Sample
from stellarbyte.config.build import build
from stellarbyte.config.nodes import Node, read_yaml
from stellarbyte.config.overrides import override, parse_overrides
from stellarbyte.errors import UserError, one_line
from stellarbyte.reading import expanded
from stellarbyte.terminal_text import harmless
from stellarbyte_torch.data.config import DataConfig, refuse_old_names
from stellarbyte_torch.data.samples import read_samples
from stellarbyte_torch.finetune.config import FinetuneConfig
from stellarbyte_torch.model_folder import load_tokenizer

_FIELDS = [field.name for field in fields(FinetuneConfig)]
_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"


def preview(path: Path, count: int, *, colour: bool, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Pieces of text to print: the first `count` training samples of the config in `path`, then a summary.

    Trained tokens are green, or between ⟦ and ⟧ without colour. Only `data` is read from the config, and `model` if
    data.tokenizer does not name the tokenizer's folder; command-line overrides (`--data.sequence_length 9`) apply.

    Raises:
        UserError: the config, an override, the tokenizer or the data has a mistake.
    """
    root = read_yaml(path)
    for name, value in root.value.items():
        _check_field(name, value.where)
    for name, value in parse_overrides(overrides):
        _check_field(name, value.where)
        root = override(root, name, value)
    if "data" not in root.value:
        raise UserError(f"{path}: data is missing and must be given")
    refuse_old_names(root.value["data"])
    config = build(DataConfig, root.value["data"], "data")
    tokenizer = load_tokenizer(_tokenizer_folder(config, root, path))
    samples = read_samples(config, tokenizer)
    for number, sample in enumerate(samples.train[:count], 1):
        trained = int(sample.trained.sum())
        yield f"── sample {number}, {one_line(sample.where)}: {len(sample)} tokens, {trained} trained\n"
        yield marked_text(sample, tokenizer, colour=colour) + "\n\n"
    yield samples.summary() + "\n"


def marked_text(sample: Sample, tokenizer: PreTrainedTokenizerBase, *, colour: bool) -> str:
    """A sample's text, special tokens included, with its trained stretches green or between ⟦ and ⟧."""
    before, after = (_GREEN, _PLAIN) if colour else ("⟦", "⟧")
    pieces = []
    for trained, run in groupby(
        zip(sample.input_ids.tolist(), sample.trained.tolist(), strict=True), lambda pair: pair[1]
    ):
        text = harmless(str(tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False)))
        pieces.append(f"{before}{text}{after}" if trained else text)
    return "".join(pieces)


def _check_field(name: str, where: str) -> None:
    first = name.partition(".")[0]
    if first not in _FIELDS:
        near = difflib.get_close_matches(first, _FIELDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(_FIELDS)}"
        raise UserError(f"{where}: {name or repr(name)} is not a field of a fine-tuning config; {hint}")


def _tokenizer_folder(config: DataConfig, root: Node, path: Path) -> Path:
    if config.tokenizer is not None:
        return expanded(config.tokenizer)
    model = root.value.get("model")
    if model is None or not isinstance(model.value, str):
        where = path if model is None else model.where
        raise UserError(f"{where}: model must name a model's folder, or data.tokenizer a tokenizer's")
    return expanded(model.value)
