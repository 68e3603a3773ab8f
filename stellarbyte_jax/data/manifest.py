"""Says what a finished folder of token shards holds, and how to know that all of it is as it was written."""

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

from stellarbyte.chat.told import Told
from stellarbyte.config.build import build
from stellarbyte.config.nodes import locate
from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of_json, write_json
from stellarbyte.reading import read_json_object
from stellarbyte.records.bad_records import BadRecords
from stellarbyte_jax.data.recipe import Recipe

MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class SplitCounts:
    """Size of a split: tokens with bos and eos, documents (chat: samples), UTF-8 bytes of their text."""

    tokens: int
    documents: int
    bytes: int


@dataclass(frozen=True)
class SampleCounts:
    """Of chat, over both splits: tokens trained on, and what is in no sample.

    too_long conversations had more than sequence_length tokens, cut_tokens of which are in no sample; untrained samples
    were left out as they had no trained token. The rest is as in stellarbyte.chat.encoding.Told, `unused` with commas.
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
        """What users are told of the conversations."""
        return Told(self.unended, self.thoughtless, self.unwritten, frozenset(filter(None, self.unused.split(","))))

    def __add__(self, other: "SampleCounts") -> "SampleCounts":
        *ours, _ = astuple(self)
        *theirs, _ = astuple(other)
        unused = ",".join(sorted(self.told.unused | other.told.unused))
        return replace(SampleCounts(*(a + b for a, b in zip(ours, theirs, strict=True))), unused=unused)

    def summary(self) -> str:
        """One line: what is trained on, then what is not there, if anything is missing."""
        line = f"{self.trained_tokens} tokens trained on"
        if self.too_long:
            line += f"; {self.too_long} too long, {self.cut_tokens} tokens cut off"
        if self.untrained:
            line += f"; {self.untrained} left out without a trained token"
        return "; ".join((line, *self.told.sentences()))


@dataclass(frozen=True)
class Manifest:
    """A finished folder of token shards: its recipe, the size of each split, and the bad records that were skipped.

    checksums: of each file by its name, the CRC-32 of each of its blocks, in hexadecimal. None in folders of an earlier
        version.
    """

    recipe: Recipe
    splits: Mapping[str, SplitCounts]
    samples: SampleCounts | None = None
    bad_record_count: int = 0
    first_bad_records: tuple[str, ...] = ()
    empty_records: int = 0
    checksums: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if set(self.splits) != set(SPLITS):
            raise UserError(f"splits names {', '.join(self.splits) or 'nothing'}, expected {' and '.join(SPLITS)}")
        for name, counts in self.splits.items():
            if min(astuple(counts)) < 0:
                raise UserError(f"splits.{name} {counts} must not be negative")

    @property
    def bad_records(self) -> BadRecords:
        """The records that were skipped or hold no text, for their summary."""
        return BadRecords("skip", self.bad_record_count, self.first_bad_records, self.empty_records)

    def save(self, folder: Path) -> None:
        """Write the manifest, which makes the folder a finished one, in one step."""
        content = asdict(self)
        write_json(folder / MANIFEST_NAME, content | {"sha256": sha256_of_json(content)})

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read a finished folder's manifest.

        Raises:
            UserError: there is none, or it cannot be read, or is damaged.
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
        """What to tell whoever uses the folder."""
        if self.checksums is not None:
            return None
        return (
            "the token shards were prepared without checksums, by an earlier version: damage to them cannot be seen; "
            "prepare them again to have it seen"
        )
