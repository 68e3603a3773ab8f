"""The data section of a fine-tuning config."""

from dataclasses import dataclass, replace
from typing import Literal

from stellarbyte.chat.formats import RecordFormat
from stellarbyte.config.nodes import Node
from stellarbyte.errors import UserError
from stellarbyte.files import check_path


@dataclass(frozen=True)
class SourceConfig:
    """One source of records."""

    path: str
    """A file, a folder that is searched whole, or a glob. Files .jsonl .ndjson .json .csv .tsv .parquet hold records,
    and .txt .md .py one text each; any of them may end in .gz .zst .xz or .bz2.
    """

    format: RecordFormat = "auto"
    """The kind of a record: messages; prompt_completion (prompt and completion); alpaca (instruction, output and
    perhaps input); or text, plain text. auto tells the kind of each record from the fields that it has.
    """

    def __post_init__(self) -> None:
        _require(bool(self.path), "path", self.path, "must name a file, a folder or a glob")


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from and how they become tokens."""

    sources: tuple[SourceConfig, ...]
    """The records to train on: one or more sources, read in this order."""

    tokenizer: str | None = None
    """The folder or Hub id of the tokenizer; null for the model's own."""

    chat_template: str | None = None
    """A Jinja file with the chat template, or "stellarbyte" for the one that `stellarbyte tokenizer train` writes. The
    default is the tokenizer's own.
    """

    sequence_length: int = 1024
    """Number of tokens in the longest sample, and in a row with packing; at most the model's context."""

    on_too_long: Literal["truncate", "drop", "split"] = "truncate"
    """What happens to a sample of more than sequence_length tokens: truncate keeps its first tokens, drop leaves it
    out, and split continues it in further samples, which do not see what came before. A piece without a trained token
    is left out; all of this is counted.
    """

    packing: bool = False
    """Whether several samples share a row; they do not see each other. Otherwise a row holds one sample, padded to the
    longest of its batch.
    """

    loss_on: Literal["assistant", "all"] = "assistant"
    """What is trained on: assistant is the assistant's turns alone, and all is every token. Plain text is trained on
    whole in both cases.
    """

    validation_fraction: float = 0.05
    """Share of the samples that is set apart for validation, from 0 to less than 1. A hash of their tokens decides, so
    that equal samples go to the same side.
    """

    on_bad_record: Literal["fail", "skip"] = "fail"
    """What happens at a record that cannot be used: fail ends the command, and skip leaves the record out and counts
    it.
    """

    seed: int = 0
    """The seed of which samples are set apart, and of the order in which samples are packed."""

    def __post_init__(self) -> None:
        for name in ("tokenizer", "chat_template"):
            if getattr(self, name) is not None:
                check_path(getattr(self, name), name)
        _require(len(self.sources) > 0, "sources", self.sources, "must name at least one source")
        _require(self.sequence_length >= 2, "sequence_length", self.sequence_length, "must be at least 2")
        in_range = 0 <= self.validation_fraction < 1
        _require(in_range, "validation_fraction", self.validation_fraction, "must be at least 0 and less than 1")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "must be at least 0 and less than 2^63")


# Fields' names in earlier versions -> their present names.
_OLD_NAMES = {"max_length": "sequence_length"}


def refuse_old_names(data: Node) -> None:
    """Raises UserError, with the new name, if the section `data` calls a field by an old name."""
    for old, new in _OLD_NAMES.items():
        if isinstance(data.value, dict) and old in data.value:
            raise UserError(f"{data.value[old].where}: data.{old} is called data.{new}: rename it")


def with_new_names(data: Node) -> Node:
    """The section `data` of a saved run's config, which an earlier version may have written, with present names."""
    if not isinstance(data.value, dict):
        return data
    return replace(data, value={_OLD_NAMES.get(name, name): value for name, value in data.value.items()})


def _require(condition: bool, field: str, value: object, rule: str) -> None:
    if not condition:
        raise UserError(f"{field} is {value!r} but {rule}")
