"""Shows samples as a model will see them, with the tokens that are trained on set off from the rest."""

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stellarbyte_torch.chat_encoding import Sample
from stellarbyte_torch.config_file import Node, build, read_yaml
from stellarbyte_torch.data import read_samples
from stellarbyte_torch.data_config import DataConfig
from stellarbyte_torch.errors import UserError

_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"

# A sample must not be able to command the terminal, or to end a colour.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def preview(path: Path, count: int, *, colour: bool) -> Iterator[str]:
    """Pieces of text to print: the first `count` training samples of the config in `path`, then a summary.

    Trained tokens are green, or between ⟦ and ⟧ without colour. Of the config only `data` is read, and `model`, a
    folder, unless data.tokenizer names another.

    Raises:
        UserError: the config, the tokenizer, or the data has a mistake.
    """
    root = read_yaml(path)
    if "data" not in root.value:
        raise UserError(f"{path}: data is missing and must be given")
    config = build(DataConfig, root.value["data"], "data")
    tokenizer = load_tokenizer(_tokenizer_folder(config, root, path))
    samples = read_samples(config, tokenizer)
    for number, sample in enumerate(samples.train[:count], 1):
        trained = int(sample.trained.sum())
        yield f"── sample {number}, {sample.where}: {len(sample)} tokens, {trained} trained\n"
        yield marked_text(sample, tokenizer, colour=colour) + "\n\n"
    yield samples.summary() + "\n"


def marked_text(sample: Sample, tokenizer: PreTrainedTokenizerBase, *, colour: bool) -> str:
    """A sample's text, special tokens included, with the trained stretches green or between ⟦ and ⟧."""
    before, after = (_GREEN, _PLAIN) if colour else ("⟦", "⟧")
    pieces = []
    for trained, run in groupby(
        zip(sample.input_ids.tolist(), sample.trained.tolist(), strict=True), lambda pair: pair[1]
    ):
        text = str(tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False))
        text = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
        pieces.append(f"{before}{text}{after}" if trained else text)
    return "".join(pieces)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"the tokenizer's folder {folder} does not exist: check the path, relative to {Path.cwd()}")
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises the bare class for a damaged tokenizer.json
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{folder} holds no tokenizer that can be loaded: {reason}") from error


def _tokenizer_folder(config: DataConfig, root: Node, path: Path) -> Path:
    if config.tokenizer is not None:
        return Path(config.tokenizer).expanduser()
    model = root.value.get("model")
    if model is None or not isinstance(model.value, str):
        where = path if model is None else model.where
        raise UserError(f"{where}: model must name a model's folder, or data.tokenizer a tokenizer's")
    return Path(model.value).expanduser()
