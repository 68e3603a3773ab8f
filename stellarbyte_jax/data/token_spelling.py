"""Tells how a tokenizer spells the bytes of a text in its tokens, and refuses one that would lose some of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stellarbyte.errors import UserError, shown

_BLANK = "▁"  # U+2581, by which SentencePiece writes a blank
_FIX = "use a byte-level BPE, such as one made by `stellarbyte tokenizer train`, or the tokenizer of a stock model"

# Steps that cut a text and keep all of it, unless their behaviour is to remove what they match.
_CUTTING = {"Split", "ByteLevel", "Digits", "Punctuation", "UnicodeScripts", "Metaspace"}

_Content = Mapping[str, Any]


@dataclass(frozen=True)
class Spelling:
    """How the tokens of a tokenizer spell bytes.

    Byte-level tokens (GPT-2, Llama 3, Qwen) have one printable character for each byte. Others (SentencePiece's, as in
    Llama 2, Mistral and Mixtral) hold the text itself with ▁ for a blank, and a token such as <0x0A> for a single byte.

    Attributes:
        byte_level: whether tokens have one character for each byte.
        blank_first: whether the tokenizer puts a blank before a text, which decoding takes away again.
        changes: sentences on how a text may come back changed; none for most tokenizers.
    """

    byte_level: bool
    blank_first: bool = False
    changes: tuple[str, ...] = ()

    def byte_token(self, byte: int) -> str:
        """The token of a single byte."""
        return BYTE_CHARS[byte] if self.byte_level else f"<0x{byte:02X}>"

    def bytes_of(self, token: str) -> bytes:
        """The bytes that a token of the vocabulary stands for. Raises KeyError if it is not spelled so."""
        if self.byte_level:
            return bytes(_BYTE_OF_CHAR[char] for char in token)
        byte = _BYTE_OF_TOKEN.get(token)
        return token.replace(_BLANK, " ").encode() if byte is None else bytes((byte,))


def spelling(content: _Content, name: str) -> Spelling:
    """The spelling of the tokenizer whose tokenizer.json has this content; `name` is the tokenizer's in errors.

    Raises:
        UserError: the tokenizer loses or changes parts of texts, or gives other tokens each time.
    """
    model, steps = content["model"], list(_steps(content.get("pre_tokenizer"), "pretokenizers"))
    normalizers = list(_steps(content.get("normalizer"), "normalizers"))
    byte_level = bool(steps) and steps[-1].get("type") == "ByteLevel"
    metaspace = next((step for step in steps if step.get("type") == "Metaspace"), None)
    writes_blanks = any(_replaces_blanks(step) for step in normalizers) or metaspace is not None
    complaints = {
        "is no BPE": model.get("type") != "BPE",
        "drops merges at random (model.dropout)": bool(model.get("dropout")),
        "marks words (continuing_subword_prefix, end_of_word_suffix)": any(
            model.get(mark) for mark in ("continuing_subword_prefix", "end_of_word_suffix")
        ),
        "does not split texts into bytes (pre_tokenizer), and has no bytes to fall back to (model.byte_fallback)": (
            not byte_level and not (model.get("byte_fallback") is True and writes_blanks)
        ),
        "puts a blank before texts (add_prefix_space)": byte_level and bool(steps[-1].get("add_prefix_space")),
        **{
            f"has the normalizer {shown(step.get('type'))}, which changes texts": True
            for step in normalizers
            if not _is_known(step, byte_level)
        },
        **{
            f"drops parts of texts (pre_tokenizer {shown(step.get('type'))})": True
            for step in steps
            if step.get("type") not in _CUTTING or step.get("behavior") == "Removed"
        },
        f"writes a blank as {shown(metaspace and metaspace.get('replacement'))}": (
            metaspace is not None and (byte_level or metaspace.get("replacement") != _BLANK)
        ),
    }
    for complaint, holds in complaints.items():
        if holds:
            raise UserError(f"the tokenizer {name} {complaint}, so that texts would not come back as they were: {_FIX}")
    changes = ["writes texts in Unicode's normal form NFC"] * any(step["type"] == "NFC" for step in normalizers)
    prepends = any(step["type"] == "Prepend" for step in normalizers)
    if not byte_level:
        changes.append(f"takes the character {_BLANK} for a blank")
    if metaspace is not None and metaspace.get("prepend_scheme", "always") != "never":
        prepends = True
        changes.append("takes a blank that begins a text for the one that it puts there itself")
    return Spelling(byte_level, prepends, tuple(changes))


def without_first_blank(content: _Content) -> dict[str, Any]:
    """The content of a tokenizer.json that puts no blank before a text, because the text goes on from another."""
    normalizers = [step for step in _steps(content.get("normalizer"), "normalizers") if step["type"] != "Prepend"]
    steps = [
        step | {"prepend_scheme": "never"} if step["type"] == "Metaspace" else step
        for step in _steps(content.get("pre_tokenizer"), "pretokenizers")
    ]
    return {
        **content,
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if steps else None,
    }


def _steps(node: Any, inner: str) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer in order; a Sequence stands for its own."""
    if isinstance(node, dict):
        if node.get("type") == "Sequence":
            for step in node.get(inner) or ():
                yield from _steps(step, inner)
        else:
            yield node


def _is_known(step: _Content, byte_level: bool) -> bool:
    if step.get("type") == "NFC":
        return True
    return not byte_level and (_replaces_blanks(step) or (step.get("type"), step.get("prepend")) == ("Prepend", _BLANK))


def _replaces_blanks(step: _Content) -> bool:
    return (step.get("type"), step.get("pattern"), step.get("content")) == ("Replace", {"String": " "}, _BLANK)


def _byte_chars() -> list[str]:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = {byte: 256 + n for n, byte in enumerate(byte for byte in range(256) if byte not in printable)}
    return [chr(shifted.get(byte, byte)) for byte in range(256)]


BYTE_CHARS = _byte_chars()
"""The printable character by which a byte-level BPE writes each byte (GPT-2's table), byte 0 first."""

_BYTE_OF_CHAR = {char: byte for byte, char in enumerate(BYTE_CHARS)}
_BYTE_OF_TOKEN = {f"<0x{byte:02X}>": byte for byte in range(256)}
