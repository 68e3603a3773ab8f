"""A byte-level BPE that gives back any bytes exactly, in a folder that Hugging Face's AutoTokenizer loads too."""

import codecs
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from stellarbyte.errors import UserError, shown
from stellarbyte.files import check_plain_name, written_whole
from stellarbyte.reading import MOST_JSON_BYTES, parse_json, read_text
from stellarbyte.tokenizer_file import check_tokenizer, works

BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = SPECIAL_TOKENS = ("<|SBOS|>", "<|SEOS|>", "<|PAD|>")

# The files that a tokenizer's folder may hold, and so a checkpoint and an export.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

# Python's surrogateescape writes a byte 0xNN that is not UTF-8 as the code point U+DCNN.
_ESCAPED_BYTE = re.compile("([\udc80-\udcff])")


class Tokenizer:
    """A trained tokenizer: text or bytes to token ids and back, exactly.

    Special tokens stand for no text: encoding never produces them, decoding leaves them out. Other added tokens stand
    for their own text.
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
        _check_gives_back(content, name)
        # The file may have truncation and padding for somebody else's batches, which would shorten or lengthen texts.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # This file is copied into checkpoints and exports, where an error in it would be found late.
        settings = parse_json(self.files.get("tokenizer_config.json", "{}"), f"{name}/tokenizer_config.json")
        if not isinstance(settings, dict):
            raise UserError(f"{name}/tokenizer_config.json holds {shown(settings)}, expected an object")
        # "<|SEOS|>" written in a text is text: a document must not be able to end itself.
        self._tokenizer.encode_special_tokens = True
        # Ids may have gaps, and a model needs a row for the largest of them.
        self.vocab_size: int = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        self._check_added_tokens()
        self.bos_token_id, self.eos_token_id, self.pad_token_id = map(self._special_id, SPECIAL_TOKENS)
        self.sha256 = hashlib.sha256(self.files["tokenizer.json"].encode()).hexdigest()
        self._id_of_byte = [self._byte_id(char) for char in _byte_chars()]

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer in a folder.

        Raises:
            UserError: the folder holds no tokenizer.json, or one that is not a byte-level tokenizer like ours.
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
        for piece in _ESCAPED_BYTE.split(text):
            if _ESCAPED_BYTE.fullmatch(piece):
                ids.append(self._id_of_byte[ord(piece) - 0xDC00])
                continue
            try:
                piece.encode()
            except UnicodeEncodeError as error:
                code = ord(piece[error.start])
                raise UserError(f"the text holds the lone surrogate U+{code:04X}, no character: remove it") from None
            with works(self.name):
                ids.extend(self._tokenizer.encode(piece, add_special_tokens=False).ids)
        return ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids (int32) of many texts, on all cores; other Python threads run meanwhile."""
        ids, lengths = self.encode_joined(texts)
        return np.split(ids, np.cumsum(lengths)[:-1]) if texts else []

    def encode_joined(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Like encode_batch, as one array of ids (int32) and one of the texts' lengths in tokens (int64)."""
        with works(self.name):
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, int(lengths.sum()))
        return ids, lengths

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of the ids. Special tokens have none, nor have ids that only a model's vocabulary has."""
        table = self._bytes_of_id
        return b"".join(table[token_id] for token_id in ids if 0 <= token_id < len(table))

    @cached_property
    def _bytes_of_id(self) -> list[bytes]:
        byte_of_char = {char: byte for byte, char in enumerate(_byte_chars())}
        added = self._tokenizer.get_added_tokens_decoder()
        table = [b""] * self.vocab_size
        for token, token_id in self._tokenizer.get_vocab().items():
            if token_id not in added:
                try:
                    table[token_id] = bytes(byte_of_char[char] for char in token)
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
        """The number of bytes that each token stands for, int32 [vocab_size]; 0 for special tokens."""
        return np.array([len(token) for token in self._bytes_of_id], np.int32)

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
    def special_ids(self) -> set[int]:
        """The ids of all special tokens."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token_id for token_id, token in added.items() if token.special}

    def _check_added_tokens(self) -> None:
        for token in self._tokenizer.get_added_tokens_decoder().values():
            if not token.special and (token.lstrip or token.rstrip):
                raise UserError(
                    f"the tokenizer {self.name} has the added token {token.content!r}, which takes away blanks beside "
                    "it (lstrip, rstrip), so that texts would not come back: add it without"
                )

    def _special_id(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        added = self._tokenizer.get_added_tokens_decoder().get(-1 if token_id is None else token_id)
        if token_id is None or added is None or not added.special:
            raise UserError(
                f"the tokenizer {self.name} lacks the special token {token}: "
                "use one made by `stellarbyte tokenizer train`"
            )
        return int(token_id)

    def _byte_id(self, char: str) -> int:
        token_id = self._tokenizer.token_to_id(char)
        if token_id is None:
            raise UserError(
                f"the tokenizer {self.name} lacks some of the 256 bytes: use one made by `stellarbyte tokenizer train`"
            )
        return int(token_id)


class StreamDecoder:
    """Turns tokens into text one by one, holding back bytes until their character is complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; it may be empty."""
        return self._decoder.decode(self._tokenizer.decode_bytes((token_id,)))

    def finish(self) -> str:
        """U+FFFD if the last character is incomplete, otherwise nothing."""
        return self._decoder.decode(b"", final=True)


def _check_gives_back(content: Mapping[str, Any], name: str) -> None:
    """Refuses a tokenizer that changes texts, or gives other tokens each time.

    Raises:
        UserError: it is not a byte-level BPE, has a normalizer, drops merges, marks words, or adds a blank.
    """
    model, steps = content["model"], content.get("pre_tokenizer") or {}
    last = steps.get("pretokenizers", [steps])[-1] if isinstance(steps, dict) else {}
    complaints = {
        "is no BPE": model.get("type") != "BPE",
        "has a normalizer, which changes texts": content.get("normalizer") is not None,
        "drops merges at random (model.dropout)": bool(model.get("dropout")),
        "marks words (continuing_subword_prefix, end_of_word_suffix)": any(
            model.get(mark) for mark in ("continuing_subword_prefix", "end_of_word_suffix")
        ),
        "does not split texts into bytes (pre_tokenizer)": last.get("type") != "ByteLevel",
        "puts a blank before texts (add_prefix_space)": bool(last.get("add_prefix_space")),
    }
    for complaint, holds in complaints.items():
        if holds:
            raise UserError(
                f"the tokenizer {name} {complaint}, so that texts would not come back as they were: use a byte-level "
                "BPE, such as one made by `stellarbyte tokenizer train`"
            )


def _byte_chars() -> list[str]:
    """The printable character by which a byte-level BPE writes each byte (GPT-2's table), byte 0 first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = {byte: 256 + n for n, byte in enumerate(byte for byte in range(256) if byte not in printable)}
    return [chr(shifted.get(byte, byte)) for byte in range(256)]
