"""Reads chat templates and renders conversations with them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2

from stellarbyte.chat.bounds import Bounds
from stellarbyte.chat.origins import TOOLS, Message, Origin, Rendering
from stellarbyte.chat.sandbox import Sandbox
from stellarbyte.chat.traced import Traced, TracingError
from stellarbyte.errors import UserError
from stellarbyte.reading import expanded
from stellarbyte.records.bad_records import RecordError

STELLARBYTE_TEMPLATE = """\
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
"""The template that `stellarbyte tokenizer train` writes, and that configs may name for tokenizers without one."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""The keys under which messages carry what was thought before the answer; as in Transformers, all mean the same."""

THOUGHT = "thinking"
"""The name of the thought before the answer as a field of Origin, wherever in the message it stands."""

_THOUGHT_END = "</think>"
_LONGEST_TEMPLATE = 1 << 17  # characters; the longest of released models have about 20,000
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_WORD = re.compile(r"\w+")


def read_template(name: str | None, field: str) -> str | None:
    """The template in a file, or ours for the name stellarbyte; None, which means the tokenizer's own, stays None.

    Raises:
        UserError: the file cannot be read; `field` is its name in the error.
    """
    if name is None or name == "stellarbyte":
        return name and STELLARBYTE_TEMPLATE
    path = expanded(name)
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for ever
            reason = "it is a folder, a pipe or a device"
        elif path.is_file() and path.stat().st_size > _LONGEST_TEMPLATE:
            reason = f"it has more than {_LONGEST_TEMPLATE} bytes"
        else:
            return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else "it is not UTF-8"
    except ValueError as error:  # a NUL in the name
        reason = str(error)
    raise UserError(f"{field} {name} cannot be read ({reason}): name a Jinja file, or stellarbyte")


def split_thought(content: str) -> tuple[str, str]:
    """An assistant's content in two parts: the thought with its closing tag, and the answer."""
    end = content.rfind(_THOUGHT_END)
    cut = 0 if end < 0 else end + len(_THOUGHT_END)
    return content[:cut], content[cut:]


def has_thought(message: Mapping[str, Any]) -> bool:
    """Whether an assistant's message contains a thought before the answer."""
    inline, _ = split_thought(message["content"])
    return any(message.get(key) for key in REASONING) or bool(re.sub(r"</?think>|\s", "", inline))


@dataclass(frozen=True)
class RenderedText:
    """A rendered conversation: the text, and the origins that its codes stand for."""

    text: Traced
    origins: Sequence[Origin]


class ChatTemplate:
    """A chat template, which gets the same names and values as in Transformers.

    Args:
        source: the text of the template, Jinja.
        special_tokens: bos_token and the like, by name.
        today: the time that strftime_now formats; None leaves strftime_now undefined, so that the same data give the
            same tokens tomorrow.

    Raises:
        UserError: the source is not Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, Any], today: datetime | None = None) -> None:
        self.marks_turns = _GENERATION.search(source) is not None
        """Whether the template has {% generation %} blocks."""
        self.words = frozenset(_WORD.findall(source))
        """The words in the source; a key that is none of them is certainly not used."""
        self._special_tokens = special_tokens
        self._sandbox = Sandbox()
        if today is not None:
            self._sandbox.globals["strftime_now"] = today.strftime
        if len(source) > _LONGEST_TEMPLATE:
            raise UserError(f"the chat template has more than {_LONGEST_TEMPLATE} characters: it is no template")
        try:
            self._template = self._sandbox.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"the chat template is not Jinja: {error.message} in its line {error.lineno}") from None
        except (SyntaxError, RecursionError, MemoryError, ValueError) as error:  # Python's own limits of nesting
            reason = str(error).partition("(")[0].strip() or type(error).__name__
            raise UserError(f"the chat template is nested too deep or not Jinja: {reason}") from None

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[Any],
        where: str,
        *,
        add_generation_prompt: bool = False,
    ) -> RenderedText:
        """The conversation as text.

        Raises:
            RecordError: the template refuses the conversation, or changes it in a way that cannot be traced.
            UserError: the template exceeds its bounds.
        """
        bounds = Bounds(where, len(messages), sum(map(_characters, (*messages, *tools))))
        rendering = Rendering(bounds)
        try:
            text = self._sandbox.rendered(
                self._template,
                rendering,
                messages=[_traced_message(rendering, number, message) for number, message in enumerate(messages)],
                tools=[_traced(rendering, tool, TOOLS, "tools") for tool in tools] or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except UserError:
            raise
        except TracingError as error:
            raise RecordError(
                f"{where} cannot be traced through the chat template, which puts what is said through {error}"
            ) from None
        except RecursionError:
            raise UserError(f"the chat template calls itself without end for {where}") from None
        except Exception as error:  # noqa: BLE001 - a template is a stranger's program, which may raise anything
            raise RecordError(f"{where} does not suit the chat template ({_reason(error)})") from None
        return RenderedText(text, rendering.origins)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    for own, known in (("stellarbyte.chat.traced.Traced", "str"), ("stellarbyte.chat.sandbox.Message", "dict")):
        text = text.replace(own, known)
    return text if len(text) <= 300 else f"{text[:300]}…"


def _traced_message(rendering: Rendering, number: int, message: dict[str, Any]) -> Message:
    reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    seen = Message(
        {
            key: value if key == "role" else _traced(rendering, value, number, THOUGHT if key in REASONING else key)
            for key, value in message.items()
        }
    )
    if message["role"] == "assistant":
        thought, answer = split_thought(message["content"])
        seen["content"] = _traced(rendering, thought, number, THOUGHT) + _traced(rendering, answer, number, "content")
    seen.number = number
    return seen


def _traced(rendering: Rendering, value: Any, message: int, field: str) -> Any:
    if isinstance(value, str):
        return Traced(value, rendering.code(Origin(message, field)) * len(value))
    if isinstance(value, dict):
        return {
            _traced(rendering, key, message, field): _traced(rendering, item, message, field)
            for key, item in value.items()
        }
    return [_traced(rendering, item, message, field) for item in value] if isinstance(value, list | tuple) else value


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value)) + sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 0
