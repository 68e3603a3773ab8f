"""Finds a chat template and fills it in, with marks around what its {% generation %} blocks hold."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import RecordError
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.tokenizer import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, Tokenizer
from stellarbyte_jax.data.tokenizer_training import CHAT_TEMPLATE

# Around what the assistant says: private characters, of which special_names.PRIVATE leaves none in any text.
TURN, TURN_END = "\U0010fff2", "\U0010fff3"

_OUR_TOKENS = {"bos_token": BOS_TOKEN, "eos_token": EOS_TOKEN, "pad_token": PAD_TOKEN}

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def chat_template(data: DataConfig, tokenizer: Tokenizer) -> str | None:
    """The Jinja source that data.chat_template names, or the tokenizer's own; None if there is none.

    Raises:
        UserError: the file cannot be read, or the tokenizer has several templates.
    """
    if data.chat_template == "stellarbyte":
        return CHAT_TEMPLATE
    if data.chat_template is not None:
        try:
            return Path(data.chat_template).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise UserError(
                f"data.chat_template {data.chat_template} cannot be read ({reason}): name a Jinja file, or stellarbyte"
            ) from None
    if "chat_template.jinja" in tokenizer.files:
        return tokenizer.files["chat_template.jinja"]
    template = _hugging_face_config(tokenizer).get("chat_template")
    if not isinstance(template, str | None):
        raise UserError(
            f"{tokenizer.name}/tokenizer_config.json has a chat_template that is a {type(template).__name__}, not one "
            "text: set data.chat_template to the one you want, as a Jinja file"
        )
    return template


class ChatTemplate:
    """A chat template that sees what Transformers would let it see, but for the date.

    Raises:
        UserError: it is not Jinja.
    """

    def __init__(self, source: str, tokenizer: Tokenizer) -> None:
        self.source = source
        self.marks_turns = _GENERATION.search(source) is not None
        """Whether it has {% generation %} blocks."""
        self._tokens = _OUR_TOKENS | _special_tokens(_hugging_face_config(tokenizer))
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"the chat template is not Jinja: {error.message} in its line {error.lineno}") from None

    def render(self, messages: Sequence[Any], tools: Sequence[Any], where: str) -> str:
        """The conversation as text, with TURN and TURN_END around what the template's generation blocks hold.

        Raises:
            RecordError: the template refuses the conversation.
        """
        try:
            return self._template.render(
                messages=messages, tools=tools or None, documents=None, add_generation_prompt=False, **self._tokens
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise RecordError(f"{where} does not suit the chat template ({error})") from None


def _hugging_face_config(tokenizer: Tokenizer) -> dict[str, Any]:
    try:
        config = json.loads(tokenizer.files.get("tokenizer_config.json", "{}"))
    except ValueError as error:
        raise UserError(f"{tokenizer.name}/tokenizer_config.json is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{tokenizer.name}/tokenizer_config.json is not a JSON object")
    return config


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token and the like, by name: a config has them as texts, or as objects around the texts."""
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


class _GenerationBlock(Extension):
    """{% generation %}…{% endgeneration %}, a scope of its own as in Transformers."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja wants it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return f"{TURN}{caller()}{TURN_END}"


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as Transformers sets it up, without strftime_now: the same data must give the same tokens tomorrow."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own would write HTML's characters as entities.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
