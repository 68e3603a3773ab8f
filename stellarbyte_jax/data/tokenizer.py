"""Turns text into token ids and back, by a tokenizer of ours or of a stock model."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from stellarbyte.errors import UserError
from stellarbyte.files import check_plain_name, written_whole
from stellarbyte.reading import MOST_JSON_BYTES, parse_json, read_text
from stellarbyte.tokenizer_file import check_tokenizer, works
from stellarbyte_jax.data.special_tokens import document_ids, is_ours, named_tokens, read_settings
from stellarbyte_jax.data.token_spelling import spelling, without_first_blank

# The files that a tokenizer's folder may hold, and so a checkpoint and an export.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

# Python's surrogateescape writes a byte 0xNN that is not UTF-8 as the code point U+DCNN.
_ESCAPED_BYTE = re.compile("([\udc80-\udcff])")


class Tokenizer:
    """A trained tokenizer: text to token ids and back.

    It is one of ours, or a stock model's as it is: a byte-level BPE (Llama 3, Qwen) or one in SentencePiece's manner
    (Llama 2, Mistral, Mixtral). A byte-level BPE without normalizer gives back any bytes exactly; `changes` says where
    another one does not. Special tokens stand for no text: encoding never produces them, decoding leaves them out.
    Other added tokens stand for their own text.
    """

    def __init__(self, files: Mapping[str, str], name: str) -> None:
        self.files = dict(files)
        """The folder's content, file name to text: enough to write the tokenizer again."""
        self.name = name
        where = f"{name}/tokenizer.json"
        if "tokenizer.json" not in self.files:
            raise UserError(f"{where} is missing: take a folder or a checkpoint that holds a whole tokenizer")
        content = parse_json(self.files["tokenizer.json"], where)
        check_tokenizer(content, where)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(self.files["tokenizer.json"])
        except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception for whatever it cannot parse
            raise UserError(f"{where} is not a tokenizer: {error}") from None
        self._spelling = spelling(content, name)
        _set_up(self._tokenizer)
        self._continuing = self._tokenizer
        """The tokenizer of a text that goes on from another, without the blank that may stand before a text."""
        if self._spelling.blank_first:
            self._continuing = tokenizers.Tokenizer.from_str(json.dumps(without_first_blank(content)))
            _set_up(self._continuing)
        self._check_added_tokens()
        special = self._special_tokens
        # The settings are copied into checkpoints and exports, where an error in them would be found late.
        self.settings = read_settings(self.files, "tokenizer_config.json", name)
        """The content of tokenizer_config.json."""
        self.special_tokens: dict[str, str] = named_tokens(self.files, special, name)
        """bos_token, eos_token and the like -> the token, as chat templates and Hugging Face's libraries see them."""
        # Ids may have gaps, and a model needs a row for the largest of them.
        next_id = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        template = self.files.get("chat_template.jinja", self.settings.get("chat_template"))
        self.document_ids = document_ids(self.special_tokens, special, template, next_id, name)
        self.bos_token_id, self.eos_token_id, self.pad_token_id = self.document_ids
        self.vocab_size: int = max(next_id, 1 + self.pad_token_id)
        self.sha256 = hashlib.sha256(self.files["tokenizer.json"].encode()).hexdigest()
        self._id_of_byte = [self._byte_id(self._spelling.byte_token(byte)) for byte in range(256)]
        self._check_not_forged()

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer in a folder.

        Raises:
            UserError: the folder holds no tokenizer.json, or one that would lose or change parts of texts.
        """
        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            raise UserError(
                f"the tokenizer's folder {folder} has no tokenizer.json: make it with `stellarbyte tokenizer train`"
            )
        there = [name for name in TOKENIZER_FILES if (folder / name).exists()]
        try:
            files = {name: read_text(folder / name, MOST_JSON_BYTES) for name in there}
        except UserError as error:
            raise UserError(f"the tokenizer's folder {folder} cannot be read: {error}") from None
        return cls(files, str(folder))

    @staticmethod
    def save_files(files: Mapping[str, str], folder: str | Path) -> None:
        """Writes the `files` of a tokenizer into a folder, which is made if need be.

        All are on disk under other names before the first is renamed, so that a full disk leaves the old files whole.

        Raises:
            UserError: a file cannot be written.
        """
        with ExitStack() as stack:
            for name, text in files.items():
                file = stack.enter_context(written_whole(Path(folder) / check_plain_name(name, "the tokenizer")))
                file.write(text)
                file.flush()
                os.fsync(file.fileno())

    def encode(self, text: str | bytes) -> list[int]:
        """Token ids of a text, without bos and eos; each byte that is not UTF-8 becomes one token.

        Raises:
            UserError: the text holds a lone surrogate, which stands for no character and no byte.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        try:
            with works(self.name):
                return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except (UnicodeEncodeError, TypeError):
            return self._encode_with_escaped_bytes(text)

    def _encode_with_escaped_bytes(self, text: str) -> list[int]:
        ids: list[int] = []
        for index, piece in enumerate(_ESCAPED_BYTE.split(text)):
            if _ESCAPED_BYTE.fullmatch(piece):
                ids.append(self._id_of_byte[ord(piece) - 0xDC00])
                continue
            try:
                piece.encode()
            except UnicodeEncodeError as error:
                code = ord(piece[error.start])
                raise UserError(f"the text holds the lone surrogate U+{code:04X}, no character: remove it") from None
            backend = self._continuing if index else self._tokenizer
            with works(self.name):
                ids.extend(backend.encode(piece, add_special_tokens=False).ids)
        return ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids (int32) of many texts, on all cores; other Python threads run meanwhile."""
        ids, lengths = self.encode_joined(texts)
        return np.split(ids, np.cumsum(lengths)[:-1]) if texts else []

    def encode_joined(self, texts: list[str], begins: Sequence[bool] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Like encode_batch, as one array of ids (int32) and one of the texts' lengths in tokens (int64).

        begins: whether each text begins a document, or goes on from the one before it; by default all begin one.
        """
        encodings: list[Any]
        with works(self.name):
            if begins is None or self._continuing is self._tokenizer:
                encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            else:
                encodings = [None] * len(texts)
                for backend, kind in ((self._tokenizer, True), (self._continuing, False)):
                    places = [index for index, first in enumerate(begins) if bool(first) is kind]
                    some = backend.encode_batch_fast([texts[index] for index in places], add_special_tokens=False)
                    for index, encoding in zip(places, some, strict=True):
                        encodings[index] = encoding
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, int(lengths.sum()))
        return ids, lengths

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], *, continues: bool = False) -> bytes:
        """The exact bytes of the ids. Special tokens have none, nor have ids that only a model's vocabulary has.

        continues: whether the ids go on from others. A blank that the tokenizer puts before a text then stays.
        """
        table = self._bytes_of_id
        text = b"".join(table[token_id] for token_id in ids if 0 <= token_id < len(table))
        return text.removeprefix(b" ") if self._spelling.blank_first and not continues else text

    @cached_property
    def _bytes_of_id(self) -> list[bytes]:
        added = self._tokenizer.get_added_tokens_decoder()
        table = [b""] * self.vocab_size
        for token, token_id in self._tokenizer.get_vocab().items():
            if token_id not in added:
                try:
                    table[token_id] = self._spelling.bytes_of(token)
                except KeyError:
                    raise UserError(
                        f"the tokenizer {self.name} has the token {token!r}, which is not written in bytes: use a "
                        "byte-level BPE, such as one made by `stellarbyte tokenizer train`"
                    ) from None
        for token_id, added_token in added.items():
            if not added_token.special:  # such a token stands for its content
                table[token_id] = added_token.content.encode()
        return table

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """The number of bytes that each token stands for, int32 [vocab_size]; 0 for special tokens.

        Summed over a document's tokens with its bos it is the number of bytes of the document's text. So it is -1 for
        bos if the tokenizer puts a blank before a text that is not the text's own.
        """
        lengths = np.array([len(token) for token in self._bytes_of_id], np.int32)
        lengths[self.bos_token_id] = -int(self._spelling.blank_first)
        return lengths

    @property
    def changes(self) -> tuple[str, ...]:
        """What the tokenizer does to texts so that some do not come back as they were, as verbs with their objects."""
        return self._spelling.changes

    @property
    def is_ours(self) -> bool:
        """Whether `stellarbyte tokenizer train` made it, and not the makers of a stock model."""
        return is_ours(self._special_tokens)

    def check_fits(self, vocab_size: int) -> None:
        """Refuses a model whose vocabulary is smaller than the tokenizer's (a larger one only leaves rows unused).

        Raises:
            UserError: it is smaller; the error names both sizes.
        """
        if self.vocab_size > vocab_size:
            raise UserError(
                f"model.vocab_size {vocab_size} is smaller than the {self.vocab_size} tokens of the tokenizer "
                f"{self.name}: raise model.vocab_size to at least {self.vocab_size}, or train a smaller tokenizer"
            )

    @property
    def adds_bos(self) -> bool:
        """Whether Hugging Face's libraries put bos before a text; they do not with tokenizers of earlier versions."""
        return self._tokenizer.encode("", add_special_tokens=True).ids[:1] == [self.bos_token_id]

    def encode_as_hugging_face(self, text: str) -> list[int]:
        """Token ids as Hugging Face's libraries give them by default, but special tokens in a text stay text."""
        return list(self._tokenizer.encode(text, add_special_tokens=True).ids)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Each token, in the tokenizer's own spelling -> its id; added tokens are among them."""
        return dict(self._tokenizer.get_vocab())

    @property
    def bos_token(self) -> str:
        """The token that begins documents, as text."""
        return str(self._tokenizer.id_to_token(self.bos_token_id))

    @property
    def special_ids(self) -> set[int]:
        """The ids of all special tokens."""
        return set(self._special_tokens.values())

    @cached_property
    def _special_tokens(self) -> dict[str, int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in added.items() if token.special}

    def _check_added_tokens(self) -> None:
        for token in self._tokenizer.get_added_tokens_decoder().values():
            if token.special:
                continue
            if token.lstrip or token.rstrip:
                raise UserError(
                    f"the tokenizer {self.name} has the added token {token.content!r}, which takes away blanks beside "
                    "it (lstrip, rstrip), so that texts would not come back: add it without"
                )
            if self._spelling.blank_first:
                raise UserError(
                    f"the tokenizer {self.name} has the added token {token.content!r}, and puts a blank behind it as "
                    "before a text, so that texts would not come back: add it as a special token"
                )

    def _check_not_forged(self) -> None:
        for token_id in self.document_ids:
            token = self._tokenizer.id_to_token(token_id)
            if token is not None and token_id in self.encode(token):
                raise UserError(
                    f"the tokenizer {self.name} makes the special token {token!r} of a text that holds these letters, "
                    "so that a document could end itself: use a tokenizer whose model lacks that token"
                )

    def _byte_id(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise UserError(
                f"the tokenizer {self.name} lacks some of the 256 bytes: use one made by `stellarbyte tokenizer train`"
            )
        return int(token_id)


def _set_up(backend: tokenizers.Tokenizer) -> None:
    # The file may have truncation and padding for somebody else's batches, which would shorten or lengthen texts.
    backend.no_truncation()
    backend.no_padding()
    # "<|SEOS|>" written in a text is text: a document must not be able to end itself.
    backend.encode_special_tokens = True
