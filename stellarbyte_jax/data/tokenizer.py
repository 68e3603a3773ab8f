"""Byte-level BPE that gives back any bytes exactly, in a folder that Hugging Face's AutoTokenizer loads too."""

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from stellarbyte_jax.errors import UserError

BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = SPECIAL_TOKENS = ("<|SBOS|>", "<|SEOS|>", "<|PAD|>")

# Where merges may not cross, in the manner of GPT-4 and Llama 3, with two changes: CJK runs stand apart from Latin
# words ("使用Python代码"), and an English contraction ends its word, so that the literal 'text' is not cut after 't.
# documents.pieces knows where this pattern always ends a match: keep the two in step.
_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
_SPLIT = "|".join(
    (
        rf"[{_CJK}]+",
        r"(?i:'(?:s|t|re|ve|m|ll|d))(?!\p{L})",
        rf"[^\r\n\p{{L}}\p{{N}}]?[[\p{{L}}\p{{M}}]&&[^{_CJK}]]+",  # a word, with the one sign or space before it
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",  # indentation, but for the last space, which joins the word behind it
        r"\s+",
    )
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- bos_token + message['role'] + '\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
    {%- else -%}
        {{- message['content'] + eos_token -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- bos_token + 'assistant\\n' -}}{%- endif -%}
"""

# Python's surrogateescape writes a byte 0xNN that is not UTF-8 as the code point U+DCNN.
_ESCAPED_BYTE = re.compile("([\udc80-\udcff])")


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    output: Path,
    extra_special_tokens: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> "Tokenizer":
    """Learn a vocabulary of `vocab_size` tokens from a stream of texts and write the tokenizer's folder.

    Memory grows with the number of different words, not with the length of the stream. A corpus too small for
    `vocab_size` gives a smaller vocabulary, which `report` is told; a model's vocabulary may be the larger of the two.

    Raises:
        UserError: the vocabulary cannot hold the bytes and special tokens; a special token is unfit; there is no text.
    """
    special_tokens = [*SPECIAL_TOKENS, *extra_special_tokens]
    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size {vocab_size} is smaller than the 256 bytes and {len(special_tokens)} special tokens: "
            f"use at least {smallest}"
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _check_special_tokens(tokenizer, special_tokens)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # An error raised by an iterator that runs inside the trainer would come back as the trainer's own: keep it.
    stream = _FirstError(texts)
    try:
        tokenizer.train_from_iterator(stream, trainer)
    except Exception:
        if stream.error is not None:
            raise stream.error from None
        raise
    if stream.error is not None:
        raise stream.error
    if stream.count == 0:
        raise UserError("the tokenizer cannot be trained on an empty corpus: name an input that holds text")
    learned_size = tokenizer.get_vocab_size()
    if learned_size < vocab_size:
        report(
            f"The corpus is too small for vocab_size {vocab_size}: it gave {learned_size} tokens. "
            "The model's vocabulary may stay larger; its last tokens are then never seen."
        )
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(_hugging_face_config(extra_special_tokens), indent=2) + "\n",
        "chat_template.jinja": CHAT_TEMPLATE,
    }
    Tokenizer.save_files(files, output)
    return Tokenizer.load(output)


class Tokenizer:
    """A trained tokenizer: text or bytes to token ids and back, exactly.

    Special tokens stand for no text: encoding never produces them, decoding leaves them out.
    """

    def __init__(self, files: Mapping[str, str], name: str) -> None:
        self.files = dict(files)
        """The folder's content, file name to text: enough to write the tokenizer again."""
        self._name = name
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(self.files["tokenizer.json"])
        except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception for whatever it cannot parse
            raise UserError(f"{name}/tokenizer.json is not a tokenizer: {error}") from None
        # "<|SEOS|>" written in a text is text: a document must not be able to end itself.
        self._tokenizer.encode_special_tokens = True
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self.bos_token_id, self.eos_token_id, self.pad_token_id = map(self._special_id, SPECIAL_TOKENS)
        self.sha256 = hashlib.sha256(self.files["tokenizer.json"].encode()).hexdigest()
        self._id_of_byte = [self._byte_id(char) for char in _byte_chars()]

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Open a tokenizer's folder.

        Raises:
            UserError: the folder holds no tokenizer.json, or one that is no byte-level tokenizer of ours.
        """
        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            raise UserError(
                f"the tokenizer's folder {folder} has no tokenizer.json: make it with `stellarbyte tokenizer train`"
            )
        names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        try:
            files = {name: (folder / name).read_text("utf-8") for name in names if (folder / name).is_file()}
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the tokenizer's folder {folder} cannot be read: {error}") from None
        return cls(files, str(folder))

    @staticmethod
    def save_files(files: Mapping[str, str], folder: str | Path) -> None:
        """Write what `files` gave into a folder, which is made if need be."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (folder / name).write_bytes(text.encode())
        except OSError as error:
            raise UserError(f"the tokenizer cannot be written to {folder}: {error.strerror}") from None

    def encode(self, text: str | bytes) -> list[int]:
        """Token ids of a text, without bos and eos; bytes that are not UTF-8 become a token each.

        Raises:
            UserError: the text holds a lone surrogate, which stands for no character and no byte.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        try:
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
            ids.extend(self._tokenizer.encode(piece, add_special_tokens=False).ids)
        return ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids (int32) of many texts, on all cores; other Python threads run meanwhile."""
        ids, lengths = self.encode_joined(texts)
        return np.split(ids, np.cumsum(lengths)[:-1]) if texts else []

    def encode_joined(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Like encode_batch, as one array of ids (int32) and one of the texts' lengths in tokens (int64)."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, int(lengths.sum()))
        return ids, lengths

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, as UTF-8; what is not UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Exact bytes of the ids; special tokens, and ids that only a larger model vocabulary has, stand for none."""
        table = self._bytes_of_id
        return b"".join(table[token_id] for token_id in ids if 0 <= token_id < len(table))

    @cached_property
    def _bytes_of_id(self) -> list[bytes]:
        byte_of_char = {char: byte for byte, char in enumerate(_byte_chars())}
        special_ids = set(self._tokenizer.get_added_tokens_decoder())
        table = [b""] * self.vocab_size
        for token, token_id in self._tokenizer.get_vocab().items():
            if token_id not in special_ids:
                table[token_id] = bytes(byte_of_char[char] for char in token)
        return table

    @cached_property
    def byte_lengths(self) -> np.ndarray:
        """Bytes that each token stands for, int32 [vocab_size]; 0 for special tokens."""
        return np.array([len(token) for token in self._bytes_of_id], np.int32)

    def check_fits(self, vocab_size: int) -> None:
        """Refuse a model whose vocabulary is smaller than the tokenizer's (a larger one only leaves rows unused).

        Raises:
            UserError: naming both sizes.
        """
        if self.vocab_size > vocab_size:
            raise UserError(
                f"model.vocab_size {vocab_size} is smaller than the {self.vocab_size} tokens of the tokenizer "
                f"{self._name}: raise model.vocab_size to at least {self.vocab_size}, or train a smaller tokenizer"
            )

    def _special_id(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise UserError(
                f"the tokenizer {self._name} lacks the special token {token}: "
                "use one made by `stellarbyte tokenizer train`"
            )
        return int(token_id)

    def _byte_id(self, char: str) -> int:
        token_id = self._tokenizer.token_to_id(char)
        if token_id is None:
            raise UserError(
                f"the tokenizer {self._name} lacks some of the 256 bytes: use one made by `stellarbyte tokenizer train`"
            )
        return int(token_id)


class StreamDecoder:
    """Turns tokens into text one by one, holding back bytes until their character is complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Text that this token completes; may be empty."""
        return self._decoder.decode(self._tokenizer.decode_bytes((token_id,)))

    def finish(self) -> str:
        """What a last, incomplete character leaves: U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)


class _FirstError:
    """An iterable that counts its items and remembers the error that ended it."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.count = 0
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                self.count += 1
                yield text
        except Exception as error:
            self.error = error
            raise


def _byte_chars() -> list[str]:
    """The printable character by which byte-level BPE writes each byte (GPT-2's table), byte 0 first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = {byte: 256 + n for n, byte in enumerate(byte for byte in range(256) if byte not in printable)}
    return [chr(shifted.get(byte, byte)) for byte in range(256)]


def _check_special_tokens(tokenizer: tokenizers.Tokenizer, special_tokens: Sequence[str]) -> None:
    """Refuse special tokens that BPE could also build from ordinary text, for then text could forge them."""
    for index, token in enumerate(special_tokens):
        if token in special_tokens[:index]:
            raise UserError(f"extra_special_tokens {token!r} is there twice: name each special token once")
        # No merge crosses a boundary of the pre-tokenizer, so a token that has one inside arises from no text.
        if len(tokenizer.pre_tokenizer.pre_tokenize_str(token)) < 2:
            raise UserError(f"extra_special_tokens {token!r} looks like ordinary text: write it as <|name|>")


def _hugging_face_config(extra_special_tokens: Sequence[str]) -> dict[str, object]:
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS_TOKEN,
        "eos_token": EOS_TOKEN,
        "pad_token": PAD_TOKEN,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",  # batches of unequal prompts are generated from their right end
    }
    if extra_special_tokens:
        config["additional_special_tokens"] = list(extra_special_tokens)
    return config
