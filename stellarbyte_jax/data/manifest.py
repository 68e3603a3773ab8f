"""The manifest of a finished folder of token shards: its content, and checksums that show whether it was damaged."""

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

from stellarbyte.chat.told import Told
from stellarbyte.config.build import build
from stellarbyte.config.nodes import locate
from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of_json, write_json
from stellarbyte.places import Place
from stellarbyte.reading import read_json_object
from stellarbyte.records.bad_records import BadRecords
from stellarbyte_jax.data.recipe import Recipe
from stellarbyte_jax.data.shard_writer import SplitState

MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class SplitCounts:
    """The size of a split: tokens with bos and eos, documents (of chat: samples), and UTF-8 bytes of their text."""

    tokens: int
    documents: int
    bytes: int


@dataclass(frozen=True)
class SampleCounts:
    """The tokens of chat that are trained on, and the parts that are in no sample, over both splits.

    `too_long` conversations had more than sequence_length tokens, and `cut_tokens` of their tokens are in no sample.
    `untrained` samples were left out because they had no trained token. The other fields are those of
    stellarbyte.chat.told.Told, with `unused` joined by commas.
    """

    trained_tokens: int = 0
    too_long: int = 0
    cut_tokens: int = 0
    untrained: int = 0
    unended: int = 0
    thoughtless: int = 0
    unwritten: int = 0
    unused: str = ""

    @property
    def told(self) -> Told:
        """The counts that users are told of the conversations."""
        return Told(self.unended, self.thoughtless, self.unwritten, frozenset(filter(None, self.unused.split(","))))

    def __add__(self, other: "SampleCounts") -> "SampleCounts":
        *ours, _ = astuple(self)
        *theirs, _ = astuple(other)
        unused = ",".join(sorted(self.told.unused | other.told.unused))
        return replace(SampleCounts(*(a + b for a, b in zip(ours, theirs, strict=True))), unused=unused)

    def summary(self) -> str:
        """One line: the tokens that are trained on, then the parts that were left out, if there are any."""
        line = f"{self.trained_tokens} tokens trained on"
        if self.too_long:
            line += f"; {self.too_long} too long, {self.cut_tokens} tokens cut off"
        if self.untrained:
            line += f"; {self.untrained} left out without a trained token"
        return "; ".join((line, *self.told.sentences()))


@dataclass(frozen=True)
class PartFacts:
    """The number of a part, from 1; the number of all parts; and what was written of each split."""

    number: int
    count: int
    splits: Mapping[str, SplitState]


@dataclass(frozen=True)
class Manifest:
    """A finished folder of token shards: its recipe, the size of each split, and the bad records that were skipped.

    checksums: file name -> the CRC-32 of each of the file's blocks, in hexadecimal; None in folders of an earlier
        version.
    source_tokens: split -> the tokens of each source, which follow each other in the split; None in folders of an
        earlier version.
    part: which part of a whole folder this one is; None for a whole one.
    """

    recipe: Recipe
    splits: Mapping[str, SplitCounts]
    samples: SampleCounts | None = None
    bad_record_count: int = 0
    first_bad_records: tuple[str, ...] = ()
    empty_records: int = 0
    checksums: Mapping[str, str] | None = None
    source_tokens: Mapping[str, tuple[int, ...]] | None = None
    part: PartFacts | None = None

    def __post_init__(self) -> None:
        if set(self.splits) != set(SPLITS):
            raise UserError(f"splits names {', '.join(self.splits) or 'nothing'}, expected {' and '.join(SPLITS)}")
        for name, counts in self.splits.items():
            if min(astuple(counts)) < 0:
                raise UserError(f"splits.{name} {counts} must not be negative")
        for name, tokens in (self.source_tokens or {}).items():
            if name not in self.splits or min(tokens, default=0) < 0 or sum(tokens) != self.splits[name].tokens:
                raise UserError(f"source_tokens.{name} {tokens} are not the tokens of the split")

    @property
    def bad_records(self) -> BadRecords:
        """The records that were skipped or hold no text; they can write a summary."""
        return BadRecords("skip", self.bad_record_count, self.first_bad_records, self.empty_records)

    def save(self, folder: Path) -> None:
        """Writes the manifest in one step, which makes the folder a finished one."""
        content = asdict(self)
        write_json(folder / MANIFEST_NAME, content | {"sha256": sha256_of_json(content)})

    @classmethod
    def load(cls, folder: Place) -> "Manifest":
        """The manifest of a finished folder.

        Raises:
            UserError: there is none, it cannot be read, or it is damaged.
        """
        path = folder / MANIFEST_NAME
        if not path.is_file():
            raise UserError(f"{folder} holds no finished token shards: make them with `stellarbyte prepare`")
        try:
            mapping = read_json_object(path)
            sha256 = mapping.pop("sha256", None)  # none in folders of an earlier version
            if sha256 is not None and sha256 != sha256_of_json(mapping):
                raise UserError("it is damaged: its sha256 is not that of its content")
            recipe = Recipe.from_dict(mapping.get("recipe"), "recipe")
            fields = mapping | {"recipe": mapping["recipe"] | {"source_files": []}}
            return replace(build(cls, locate(fields, MANIFEST_NAME)), recipe=recipe)
        except UserError as error:
            raise UserError(
                f"{path} is not a manifest of this version ({error}): delete the folder and prepare it again"
            ) from None

    @property
    def warning(self) -> str | None:
        """A warning for those who use the folder; None if there is nothing to warn of."""
        if self.checksums is not None:
            return None
        return (
            "the token shards were prepared without checksums, by an earlier version: damage to them cannot be seen; "
            "prepare them again to have it seen"
        )
