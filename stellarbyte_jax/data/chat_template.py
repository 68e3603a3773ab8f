"""Finds the chat template that a data config or its tokenizer names, and the special tokens that it needs."""

import json
from typing import Any

from stellarbyte.chat.encoding import ChatTokenizer
from stellarbyte.chat.template import read_template
from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.tokenizer import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, Tokenizer

_OUR_TOKENS = {"bos_token": BOS_TOKEN, "eos_token": EOS_TOKEN, "pad_token": PAD_TOKEN}


def chat_tokenizer(data: DataConfig, tokenizer: Tokenizer) -> ChatTokenizer:
    """The tokenizer as the encoding of chat needs it; raises as `chat_template` does."""
    return ChatTokenizer(
        name=tokenizer.name,
        tokenizer_json=tokenizer.files["tokenizer.json"],
        special_tokens=_OUR_TOKENS | _special_tokens(_hugging_face_config(tokenizer)),
        template=chat_template(data, tokenizer),
    )


def chat_template(data: DataConfig, tokenizer: Tokenizer) -> str | None:
    """The Jinja source that data.chat_template names, or the tokenizer's own; None if there is none.

    Raises:
        UserError: the file cannot be read, or the tokenizer has several templates.
    """
    if data.chat_template is not None:
        return read_template(data.chat_template, "data.chat_template")
    if "chat_template.jinja" in tokenizer.files:
        return tokenizer.files["chat_template.jinja"]
    template = _hugging_face_config(tokenizer).get("chat_template")
    if not isinstance(template, str | None):
        raise UserError(
            f"{tokenizer.name}/tokenizer_config.json has a chat_template that is a {type(template).__name__}, not one "
            "text: set data.chat_template to the one you want, as a Jinja file"
        )
    return template


def _hugging_face_config(tokenizer: Tokenizer) -> dict[str, Any]:
    try:
        config = json.loads(tokenizer.files.get("tokenizer_config.json", "{}"))
    except ValueError as error:
        raise UserError(f"{tokenizer.name}/tokenizer_config.json is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{tokenizer.name}/tokenizer_config.json is not a JSON object")
    return config


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Name -> text of bos_token and the like, which a config has as texts, or as objects around the texts."""
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
