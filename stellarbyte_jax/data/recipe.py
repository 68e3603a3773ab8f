"""Records everything that decides the content of token shards, so that no folder of them is taken for another."""

import hashlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stellarbyte.chat.encoding import ENCODING_VERSION
from stellarbyte.config.build import build
from stellarbyte.config.nodes import locate
from stellarbyte.errors import UserError, in_full, shown, shown_path
from stellarbyte.files import sha256_of
from stellarbyte.records.formats import file_format
from stellarbyte_jax.bounds import MOST_TOKENS_PER_SHARD, check_whole
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.chat_template import chat_template
from stellarbyte_jax.data.documents import RecordText
from stellarbyte_jax.data.passages import PassageSplit, choose_passages
from stellarbyte_jax.data.tokenizer import Tokenizer

FORMAT_VERSION = 1

# The beginning of the sha256 of a file that is read by other parts of the whole.
UNREAD = "unread"


@dataclass(frozen=True)
class SourceFile:
    """A file that was read, with the sha256 of its bytes as stored and the way in which its records were read."""

    path: str
    size: int
    mtime_ns: int
    sha256: str
    fields: tuple[str, ...]
    template: str | None


@dataclass(frozen=True)
class ChatRecipe:
    """The settings that decide how conversations become the samples of chat shards.

    encoding: the ENCODING_VERSION by which they did. The first version was not recorded, so it is the default.
    """

    chat_template_sha256: str | None
    loss_on: str
    on_too_long: str
    sequence_length: int
    formats: str = "auto"
    encoding: int = 1

    @classmethod
    def make(cls, data: DataConfig, tokenizer: Tokenizer) -> "ChatRecipe":
        """The recipe for `data` as it is now."""
        template = chat_template(tokenizer, data.chat_template)
        sha256 = None if template is None else hashlib.sha256(template.encode()).hexdigest()
        formats = [source.format for source in data.sources]
        shown_formats = "auto" if set(formats) == {"auto"} else ", ".join(formats)
        return cls(
            sha256, data.loss_on, data.on_too_long, data.sequence_length, shown_formats, encoding=ENCODING_VERSION
        )

    def differences(self, other: "ChatRecipe") -> Iterator[str]:
        """See Recipe.differences."""
        for name in _CHAT_SETTINGS:
            if getattr(self, name) != getattr(other, name):
                yield f"data.{name} is {getattr(self, name)}, not {getattr(other, name)}"
        if self.formats != other.formats:
            yield f"the formats of data.sources are {self.formats}, not {other.formats}"
        if self.chat_template_sha256 != other.chat_template_sha256:
            yield "the chat template is another"
        if self.encoding != other.encoding:
            yield f"the version of how conversations are encoded is {self.encoding}, not {other.encoding}"


# In these settings a run's config must be the same as when the shards were made.
_CHAT_SETTINGS = ("loss_on", "on_too_long", "sequence_length")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the shards' content, to the last byte.

    source_file_counts: the number of files of each source; None in folders of an earlier version.
    """

    format_version: int
    dtype: Literal["uint16", "uint32"]
    tokenizer_sha256: str
    vocab_size: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    validation_fraction: float
    tokens_per_shard: int
    source_files: tuple[SourceFile, ...]
    chat: ChatRecipe | None = None
    passages: PassageSplit | None = None
    source_file_counts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise UserError(f"format_version is {self.format_version}, and this version reads {FORMAT_VERSION}")
        check_whole("tokens_per_shard", self.tokens_per_shard, 1, MOST_TOKENS_PER_SHARD)
        check_whole("vocab_size", self.vocab_size, 1, 1 << (16 if self.dtype == "uint16" else 24))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            check_whole(name, getattr(self, name), 0, self.vocab_size - 1)

    @property
    def kind(self) -> Literal["text", "chat"]:
        """The shards' kind, as in data.kind."""
        return "text" if self.chat is None else "chat"

    @property
    def item_dtype(self) -> np.dtype:
        """The dtype of the shards' items: tokens; in chat shards each token has a bool `trained` beside it."""
        token = np.dtype(self.dtype)
        return token if self.chat is None else np.dtype([("token", token), ("trained", np.bool_)])

    @classmethod
    def make(
        cls,
        data: DataConfig,
        tokenizer: Tokenizer,
        files: Sequence[tuple[int, Path]],
        known: "Recipe | None",
        unread: Container[Path] = (),
    ) -> "Recipe":
        """The recipe for `data` as it is now; `files` has (index of its source, path) for each file.

        A file is not read again if `known` has it with the same path, size and modification time. `unread` files are
        not read at all: other parts of the whole read them, and see UNREAD.
        """
        known_files = {(file.path, file.size, file.mtime_ns): file for file in known.source_files} if known else {}
        record_texts = [RecordText(source) for source in data.sources]
        source_files = []
        for source_index, path in files:
            record_text, name = record_texts[source_index], shown_path(path)
            try:
                status = path.stat()
                before = known_files.get((name, status.st_size, status.st_mtime_ns))
                if path in unread:
                    sha256 = f"{UNREAD}, {status.st_size} bytes"
                else:
                    sha256 = before.sha256 if before and not before.sha256.startswith(UNREAD) else sha256_of(path)
            except OSError as error:
                raise UserError(f"{name} cannot be read: {error.strerror}") from None
            source_files.append(
                SourceFile(name, status.st_size, status.st_mtime_ns, sha256, record_text.fields, record_text.template)
            )
        recipe = cls(
            format_version=FORMAT_VERSION,
            dtype="uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32",
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            validation_fraction=data.validation_fraction,
            tokens_per_shard=data.tokens_per_shard,
            source_files=tuple(source_files),
            chat=ChatRecipe.make(data, tokenizer) if data.kind == "chat" else None,
            source_file_counts=tuple(
                np.bincount([source for source, _ in files], minlength=len(data.sources)).tolist()
            ),
        )
        if (
            known is not None
            and known.passages is not None
            and not any(replace(recipe, passages=known.passages).differences(known))
        ):
            return replace(recipe, passages=known.passages)  # equal recipes have equal passages
        return replace(recipe, passages=choose_passages(data, files))

    @classmethod
    def from_dict(cls, mapping: Any, where: str) -> "Recipe":
        """The inverse of dataclasses.asdict after a trip through JSON; `where` names the source in errors."""
        files = mapping.get("source_files") if isinstance(mapping, dict) else None
        if not isinstance(files, list):
            raise UserError(f"{where} does not say of what files the token shards were made")
        recipe = build(cls, locate({**mapping, "source_files": []}, where))
        return replace(recipe, source_files=tuple(_source_file(file, where) for file in files))

    def check_serves(self, data: DataConfig) -> None:
        """Refuses a config for training or evaluation that describes other data than these shards.

        Raises:
            UserError: a setting differs; the error names it.
        """
        if data.kind != self.kind:
            raise UserError(
                f"data.kind is {data.kind}, but data.shards {data.shards} holds token shards of kind {self.kind}: "
                "set data.kind or data.shards to go together"
            )
        if self.chat is None:
            return
        if self.chat.encoding != ENCODING_VERSION:
            raise UserError(
                f"data.shards {data.shards} holds conversations as version {self.chat.encoding} encoded them, and this "
                f"is version {ENCODING_VERSION}, which marks other tokens as the assistant's: delete the folder and "
                "run `stellarbyte prepare` anew"
            )
        for name in _CHAT_SETTINGS:
            ours, theirs = getattr(self.chat, name), getattr(data, name)
            if ours != theirs:
                raise UserError(
                    f"data.{name} is {theirs}, but data.shards {data.shards} was prepared with {ours}: "
                    f"set it to {ours}, or prepare into another folder"
                )

    def differences(self, other: "Recipe") -> Iterator[str]:
        """The differences between this recipe and `other`, each in words: "NAME is OURS, not THEIRS"."""
        if self.chat is None or other.chat is None:
            if self.kind != other.kind:
                yield f"data.kind is {self.kind}, not {other.kind}"
        else:
            yield from self.chat.differences(other.chat)
        for name in ("format_version", "validation_fraction", "tokens_per_shard"):
            if getattr(self, name) != getattr(other, name):
                yield f"{name} is {getattr(self, name)}, not {getattr(other, name)}"
        if self.tokenizer_sha256 != other.tokenizer_sha256:
            yield (
                f"the tokenizer has {self.vocab_size} tokens and sha256 {self.tokenizer_sha256[:12]}…, "
                f"not {other.vocab_size} and {other.tokenizer_sha256[:12]}…"
            )
        if len(self.source_files) != len(other.source_files):
            yield f"the sources are {len(self.source_files)} files, not {len(other.source_files)}"
            return
        for ours, theirs in zip(self.source_files, other.source_files, strict=True):
            # The place of a file does not matter, but its suffix does.
            if (ours.sha256, file_format(Path(ours.path))) != (theirs.sha256, file_format(Path(theirs.path))):
                where = f" where {theirs.path} was" if ours.path != theirs.path else ""
                yield f"{ours.path}{where} has another content"
                return
            for name in ("fields", "template"):
                this, that = getattr(ours, name), getattr(theirs, name)
                if this != that:
                    yield f"{name} of {ours.path} is {in_full(this)}, not {in_full(that)}"
                    return
        if self.passages != other.passages:
            parts, others = ("passages" if recipe.passages else "whole documents" for recipe in (self, other))
            yield f"the validation split is of {parts}, not {others}" if parts != others else "its passages are others"

    def regrouped(self, other: "Recipe") -> Iterator[str]:
        """The difference between how the files are shared out among sources here and in `other`, in words, if any.

        It changes no token, only where each source begins, which weights go by.
        """
        ours, theirs = self.source_file_counts, other.source_file_counts
        if None not in (ours, theirs) and ours != theirs:
            yield f"the sources have {_numbers(ours)} files, not {_numbers(theirs)}"


def _numbers(counts: Sequence[int] | None) -> str:
    return ", ".join(map(str, counts or ()))


def _source_file(file: Any, where: str) -> SourceFile:
    # Checked by hand, which is faster than `build`: there may be millions of files.
    kinds: dict[str, Any] = {
        "path": str,
        "size": int,
        "mtime_ns": int,
        "sha256": str,
        "fields": list,
        "template": (str, type(None)),
    }
    if (
        isinstance(file, dict)
        and file.keys() == kinds.keys()
        and all(isinstance(file[name], kind) for name, kind in kinds.items())
        and all(isinstance(name, str) for name in file["fields"])
    ):
        return SourceFile(**{**file, "fields": tuple(file["fields"])})
    raise UserError(f"{where}: source_files holds {shown(file)}, which describes no file")
