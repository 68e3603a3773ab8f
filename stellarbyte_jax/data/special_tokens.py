"""Finds the three tokens that begin, end and fill up documents, in our tokenizers and in those of stock models."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from stellarbyte.errors import UserError, shown
from stellarbyte.reading import parse_json

BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = SPECIAL_TOKENS = ("<|SBOS|>", "<|SEOS|>", "<|PAD|>")


class DocumentIds(NamedTuple):
    """The ids of the tokens that begin a document, end it, and fill up a row."""

    bos: int
    eos: int
    pad: int


def read_settings(files: Mapping[str, str], file: str, name: str) -> dict[str, Any]:
    """The content of a JSON file of the tokenizer `name`; empty without that file. Raises UserError if it is broken."""
    settings = parse_json(files.get(file, "{}"), f"{name}/{file}")
    if not isinstance(settings, dict):
        raise UserError(f"{name}/{file} holds {shown(settings)}, expected an object")
    return settings


def named_tokens(files: Mapping[str, str], special: Mapping[str, int], name: str) -> dict[str, str]:
    """bos_token, eos_token and the like -> the token, as Hugging Face's libraries see them.

    They stand in tokenizer_config.json, or in special_tokens_map.json; tokenizers of ours are known by their tokens.

    Args:
        files: the tokenizer's files, name to text.
        special: the tokenizer's special tokens with their ids.
        name: the tokenizer's name in errors.

    Raises:
        UserError: one of the two files is not a JSON object.
    """
    named = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL_TOKENS, strict=True)) if is_ours(special) else {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_settings(files, file, name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                named[key] = text
    return named


def document_ids(
    named: Mapping[str, str], special: Mapping[str, int], template: object, next_id: int, name: str
) -> DocumentIds:
    """The ids of the tokens around documents.

    - eos: the tokenizer's eos_token, which it must have.
    - bos: its bos_token. A tokenizer without one (GPT-2's, Qwen's) separates documents by eos, so eos begins them too.
    - pad: its pad_token, if that is neither bos nor eos. Otherwise a special token that nothing else uses: the last of
      those with "pad" in their names, or else the last of all that the chat template leaves out (<unk> in Llama 2, a
      reserved token in Llama 3). Without one it is the first id behind the vocabulary, which a model has room for if
      its embedding is padded.

    Args:
        named: what `named_tokens` gives.
        special: the tokenizer's special tokens with their ids.
        template: the chat template, or whatever tokenizer_config.json has in its place.
        next_id: the first id behind the vocabulary.
        name: the tokenizer's name in errors.

    Raises:
        UserError: there is no eos, or a named token is not one of the tokenizer's special tokens.
    """
    if is_ours(special):
        return DocumentIds(*(special[token] for token in SPECIAL_TOKENS))
    if "eos_token" not in named:
        raise UserError(
            f"the tokenizer {name} names no token that ends a document: put its eos_token into tokenizer_config.json, "
            "or use a tokenizer made by `stellarbyte tokenizer train`"
        )
    ids = {}
    for key in ("bos_token", "eos_token", "pad_token"):
        if (token := named.get(key)) is not None:
            if token not in special:
                raise UserError(
                    f"the tokenizer {name} names {token!r} as its {key}, which is no special token of its "
                    "tokenizer.json: add it there"
                )
            ids[key] = special[token]
    eos = ids["eos_token"]
    bos = ids.get("bos_token", eos)
    pad = ids.get("pad_token", eos)
    if pad in (bos, eos):
        free = [(token, i) for token, i in special.items() if i not in (bos, eos) and token not in str(template)]
        _, pad = max((("pad" in token.lower(), i) for token, i in free), default=(False, next_id))
    return DocumentIds(bos, eos, pad)


def is_ours(special: Mapping[str, int]) -> bool:
    """Whether these special tokens are those of `stellarbyte tokenizer train`."""
    return all(token in special for token in SPECIAL_TOKENS)
