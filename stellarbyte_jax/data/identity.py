"""Identifies the content of token shards, wherever they lie, so that a run recognises its data."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stellarbyte.files import sha256_of_json
from stellarbyte.records.formats import file_format
from stellarbyte_jax.data.manifest import Manifest, SplitCounts
from stellarbyte_jax.data.recipe import ChatRecipe


@dataclass(frozen=True)
class DataIdentity:
    """The part of a manifest that changes only with the data, unlike the places and times of files.

    sources_sha256: a hash of the sources' contents, formats, fields and templates, in their order.
    checksums_sha256: a hash of all the shards' checksums; None for shards of an earlier version, which have none.
    source_tokens: the tokens of each source in the training split; None for shards of an earlier version.
    """

    kind: Literal["text", "chat"]
    tokenizer_sha256: str
    validation_fraction: float
    tokens_per_shard: int
    source_files: int
    sources_sha256: str
    chat: ChatRecipe | None
    splits: Mapping[str, SplitCounts]
    checksums_sha256: str | None
    source_tokens: tuple[int, ...] | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> "DataIdentity":
        """The identity of a finished folder."""
        recipe = manifest.recipe
        sources = [
            (file.sha256, file_format(Path(file.path)), file.fields, file.template) for file in recipe.source_files
        ]
        return cls(
            kind=recipe.kind,
            tokenizer_sha256=recipe.tokenizer_sha256,
            validation_fraction=recipe.validation_fraction,
            tokens_per_shard=recipe.tokens_per_shard,
            source_files=len(sources),
            sources_sha256=sha256_of_json(sources),
            chat=recipe.chat,
            splits=manifest.splits,
            checksums_sha256=None if manifest.checksums is None else sha256_of_json(manifest.checksums),
            source_tokens=None if manifest.source_tokens is None else tuple(manifest.source_tokens["train"]),
        )

    @property
    def sha256(self) -> str:
        """A hash of all fields."""
        return sha256_of_json(dataclasses.asdict(self))

    def differences(self, other: "DataIdentity", *, mixed: bool = False) -> str | None:
        """How this data differs from `other`, in words; None if both are the same data.

        Equal checksums mean equal data, whatever it was made from. If one side has no checksums, all fields decide.
        mixed: whether sources are mixed by weights, so that it matters too where each begins.
        """
        if mixed and self.source_tokens != other.source_tokens:
            return "the sources begin elsewhere"
        known = self.checksums_sha256 is not None and other.checksums_sha256 is not None
        if known and (self.kind, self.splits, self.checksums_sha256) == (
            other.kind,
            other.splits,
            other.checksums_sha256,
        ):
            return None
        return "; ".join(self._differences(other)) or ("the tokens are others" if known else None)

    def _differences(self, other: "DataIdentity") -> Iterator[str]:
        for name in ("kind", "validation_fraction", "tokens_per_shard"):
            if getattr(self, name) != getattr(other, name):
                yield f"{name} is {getattr(self, name)}, was {getattr(other, name)}"
        if self.tokenizer_sha256 != other.tokenizer_sha256:
            yield "the tokenizer is another"
        if self.chat is not None and other.chat is not None:
            yield from self.chat.differences(other.chat)
        if self.source_files != other.source_files:
            yield f"the sources are {self.source_files} files, were {other.source_files}"
        elif self.sources_sha256 != other.sources_sha256:
            yield "the sources have other content or fields"
        for split, counts in self.splits.items():
            if counts != other.splits.get(split):
                before = other.splits.get(split)
                yield f"the {split} split has {counts.tokens} tokens, had {before.tokens if before else 'none'}"
