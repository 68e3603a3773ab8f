"""What a config file says about fine-tuning data."""

from dataclasses import dataclass
from typing import Literal

from stellarbyte.chat.formats import RecordFormat
from stellarbyte.errors import UserError
from stellarbyte.files import check_path


@dataclass(frozen=True)
class SourceConfig:
    """One source of records.

    path: a file, a folder searched whole, or a glob; .jsonl .ndjson .json .csv .tsv .parquet hold records, .txt .md .py
        one text a file. Each may end in .gz .zst .xz or .bz2.
    format: the fields of its records; auto tells from the fields that each record has.
    """

    path: str
    format: RecordFormat = "auto"

    def __post_init__(self) -> None:
        _require(bool(self.path), "path", self.path, "must name a file, a folder or a glob")


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from and how they become tokens.

    sources: read in this order.
    tokenizer: a folder; the model's own by default.
    chat_template: a Jinja file, or "stellarbyte" for the one that `stellarbyte tokenizer train` writes; the
        tokenizer's own by default.
    max_length: tokens of the longest sample, and of a row when packing.
    on_too_long: truncate keeps the first max_length tokens; drop leaves the sample out; split goes on in further
        samples of max_length tokens, which do not see what came before. In each case what has no trained token left is
        left out, and all of it is counted.
    packing: several samples a row, which do not see each other; else one sample a row, padded to the longest.
    loss_on: assistant trains on assistant turns only, all on every token. Plain text is trained on whole in both cases.
    validation_fraction: of the samples, set apart by a hash of their tokens, so that equal ones go to the same side.
    on_bad_record: fail at the first, or skip and count them.
    seed: of the choice of validation samples and the order of packing.
    """

    sources: tuple[SourceConfig, ...]
    tokenizer: str | None = None
    chat_template: str | None = None
    max_length: int = 1024
    on_too_long: Literal["truncate", "drop", "split"] = "truncate"
    packing: bool = False
    loss_on: Literal["assistant", "all"] = "assistant"
    validation_fraction: float = 0.05
    on_bad_record: Literal["fail", "skip"] = "fail"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokenizer", "chat_template"):
            if getattr(self, name) is not None:
                check_path(getattr(self, name), name)
        _require(len(self.sources) > 0, "sources", self.sources, "must name at least one source")
        _require(self.max_length >= 2, "max_length", self.max_length, "must be at least 2")
        in_range = 0 <= self.validation_fraction < 1
        _require(in_range, "validation_fraction", self.validation_fraction, "must be at least 0 and less than 1")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "must be at least 0 and less than 2^63")


def _require(condition: bool, field: str, value: object, rule: str) -> None:
    if not condition:
        raise UserError(f"{field} is {value!r} but {rule}")
