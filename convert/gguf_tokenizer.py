"""Turns a run's tokenizer into the metadata of a GGUF, or refuses it where llama.cpp would make other tokens."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

from stellarbyte.errors import UserError, first_of, shown
from stellarbyte.reading import parse_json
from stellarbyte_jax.data.pre_tokenizers import PATTERNS
from stellarbyte_jax.data.token_spelling import BYTE_CHARS
from stellarbyte_jax.data.tokenizer import Tokenizer

# llama.cpp's kinds of tokens: text, special tokens, other added tokens, and rows that no token uses.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

_IGNORES_MERGES = ("llama-bpe",)  # llama.cpp takes a word that is a token for it, whatever the merges say

_TRAIN = f"`stellarbyte tokenizer train --pre-tokenizer {'|'.join(name for name in PATTERNS if name != 'stellarbyte')}`"


@dataclass(frozen=True)
class GGUFTokenizer:
    """What a GGUF says of a tokenizer.

    Attributes:
        pre: llama.cpp's name of the pattern that cuts texts into words.
        tokens: the token of each row of the embedding.
        types: what kind each of them is.
        merges: the pairs that are merged, in their order.
        adds_bos: whether bos is put before a text.
        chat_template: the Jinja source; None without one.
        changes: sentences on what the tokenizer does to texts and llama.cpp does not.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    adds_bos: bool
    chat_template: str | None
    changes: tuple[str, ...]


def gguf_tokenizer(files: Mapping[str, str], vocab_size: int, where: str) -> GGUFTokenizer:
    """The tokenizer in a GGUF of a model with `vocab_size` rows.

    Args:
        files: the tokenizer's files as an export has them, name to text.
        vocab_size: the number of rows of the model's embedding.
        where: names the model in errors.

    Raises:
        UserError: llama.cpp, or Transformers' loader of GGUF, would turn some text into other tokens.
    """
    tokenizer = Tokenizer(files, where)
    tokenizer.check_fits(vocab_size)
    content = parse_json(files["tokenizer.json"], f"{where}/tokenizer.json")
    pre = _splitter(content, where)
    _check_merges(content, pre, where)
    tokens = [f"[PAD{row}]" for row in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, row in tokenizer.vocabulary.items():
        tokens[row], types[row] = token, NORMAL
    for token in content.get("added_tokens") or ():
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
        if strange := sorted(set(token["content"]) - set(BYTE_CHARS)):
            raise UserError(
                f"{where} has the added token {token['content']!r}, and Transformers does not read one with "
                f"{strange[0]!r} from a GGUF: use a tokenizer whose added tokens are of printable ASCII"
            )
    template = files.get("chat_template.jinja", tokenizer.settings.get("chat_template"))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    return GGUFTokenizer(
        pre,
        tokens,
        types,
        merges,
        tokenizer.adds_bos,
        template if isinstance(template, str) else None,
        tokenizer.changes,
    )


def _splitter(content: Mapping[str, Any], where: str) -> str:
    """llama.cpp's name of the tokenizer's pattern. Raises UserError if it has none."""
    if content["model"].get("byte_fallback"):
        raise UserError(
            f"{where} has a tokenizer in SentencePiece's manner, of which a GGUF needs the scores in tokenizer.model: "
            "export it by `stellarbyte convert to-hf --as llama`, and that by llama.cpp's convert_hf_to_gguf.py"
        )
    steps = content.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    last = steps[-1]
    if len(steps) == 1 and last.get("use_regex", True):  # GPT-2's own form
        return "gpt-2"
    if len(steps) == 2 and steps[0].get("type") == "Split" and not last.get("use_regex", True):
        split = steps[0]
        isolated = str(split.get("behavior")).lower() == "isolated" and not split.get("invert")
        pattern = (split.get("pattern") or {}).get("Regex")
        for name, known in PATTERNS.items():
            if isolated and pattern == known and name != "stellarbyte":
                return name
    raise UserError(
        f"{where} has a tokenizer that cuts texts into words by a pattern that llama.cpp does not know, so that it "
        f"would make other tokens: train one by {_TRAIN}, or export the model by `stellarbyte convert to-hf`"
    )


def _check_merges(content: Mapping[str, Any], pre: str, where: str) -> None:
    """Refuses a vocabulary whose tokens depend on whether words that are tokens are merged at all.

    Llama 3's own (ignore_merges) is what llama.cpp expects by that name. In all others merges must lead to each token.
    """
    model = content["model"]
    ignores = bool(model.get("ignore_merges"))
    if ignores == (pre in _IGNORES_MERGES) and ignores:
        return
    bare = {**content, "pre_tokenizer": None, "normalizer": None, "post_processor": None, "added_tokens": []}
    backend = tokenizers.Tokenizer.from_str(json.dumps({**bare, "model": {**model, "ignore_merges": False}}))
    added = {token["content"] for token in content.get("added_tokens") or ()}
    words = [token for token in model["vocab"] if token not in added]
    encodings = backend.encode_batch_fast(words, add_special_tokens=False)
    lost = [word for word, found in zip(words, encodings, strict=True) if found.ids != [model["vocab"][word]]]
    if lost and (ignores or pre in _IGNORES_MERGES):
        raise UserError(
            f"{where} has tokens that its merges do not lead to ({first_of([shown(word) for word in lost], 3)}), which "
            f"llama.cpp {'would not' if ignores else 'would'} use under the name {pre}: train another by {_TRAIN}"
        )
