"""The chat templates that TRL ships, a tokenizer for each, and conversations to put through them."""

import re
from datetime import datetime
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from stellarbyte.chat.conversations import Conversation
from stellarbyte.chat.encoding import ChatEncoder, ChatTokenizer
from stellarbyte.chat.told import Told

# What the templates write as special tokens; thinking tags are text in their tokenizers, too.
SPECIAL = re.compile(
    r"<\|[^|>{}' \n]+\|>|<\|[a-z_]+>|<[a-z_]+\|>|<\uff5c[^\uff5c>]+\uff5c>|\[gMASK\]|<sop>"
    r"|<(?:start|end)_of_(?:turn|utterance)>"
)

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

_HEADERS = (r"<\|start\|>assistant", r" to=(?:user|self)", r"<\|channel\|>(?:final|analysis)", r"<\|channel>thought")


def templates() -> dict[str, str]:
    """Their sources, by name; those of text alone, as they want content as text."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    of_images = ("idefics3", "smolvlm", "llava_next")
    found = {path.stem: path.read_text("utf-8") for path in sorted(folder.glob("*.jinja"))}
    return {name: source for name, source in found.items() if not name.startswith(of_images)}


@cache
def tokenizer_of(source: str) -> tokenizers.Tokenizer:
    """Of single bytes, with the template's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(sorted({*SPECIAL.findall(source), "<s>", "</s>"}))
    return tokenizer


@cache
def encoder_of(source: str) -> ChatEncoder:
    """By the template, on a fixed day."""
    return ChatEncoder(ChatTokenizer("t", tokenizer_of(source).to_str(), SPECIAL_TOKENS, source), datetime(2026, 1, 2))


def trained_texts(source: str, messages: list[dict[str, Any]], **fields: Any) -> tuple[list[str], Told]:
    """The text of each run of trained tokens, special tokens included."""
    encoder, tokenizer = encoder_of(source), tokenizer_of(source)
    chat = encoder.render(Conversation("x:1", messages, **fields))
    (sample,) = encoder.encode([chat])
    runs = groupby(zip(sample.input_ids.tolist(), sample.trained.tolist(), strict=True), lambda pair: pair[1])
    texts = [
        tokenizer.decode([token for token, _ in run], skip_special_tokens=False) for trained, run in runs if trained
    ]
    return texts, chat.told


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def words(text: str) -> str:
    """What is said in a trained text: without special tokens, thinking tags, and white space."""
    for mark in _HEADERS:
        text = re.sub(mark, "", text)
    return re.sub(r"\s+", "", re.sub(r"</?think>|</s>|<s>", "", SPECIAL.sub("", text)))
