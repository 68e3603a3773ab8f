"""Makes of a record, whatever its fields, one conversation or one plain text; refuses what nobody could train on."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stellarbyte.records.bad_records import RecordError, kind_of
from stellarbyte_torch.data_config import RecordFormat

ROLES = ("system", "user", "assistant", "tool")

# The fields that a record of each format must have; auto takes the first format that has all of its own.
_FIELDS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat template takes them, with the tools on offer; or, without messages, a plain text."""

    where: str
    messages: Sequence[dict[str, Any]] = ()
    tools: Sequence[Any] = field(default=())
    text: str = ""


def parse_record(record: dict[str, Any], where: str, record_format: RecordFormat = "auto") -> Conversation:
    """The conversation in a record that was found at `where`.

    - messages: a list of {role, content, …} (or that list as JSON text, for CSV), and optionally tools;
    - alpaca: instruction, optionally input (below the instruction, after a blank line), output;
    - prompt_completion: both a text, or both a list of messages;
    - text: a plain text. An optional `system` text opens an alpaca or prompt_completion conversation.

    Raises:
        RecordError: a field is missing or has another type, a role is unknown, or a turn is empty.
    """
    record = {name: value for name, value in record.items() if value is not None}  # parquet's missing fields
    kind = _detect(record, where) if record_format == "auto" else record_format
    for name in _FIELDS[kind]:
        if name not in record:
            raise RecordError(f"{where} lacks the field {name!r} of the format {kind} (it has {_names(record)})")
    if kind == "text":
        return Conversation(where, text=_text(record, "text", where))
    if kind == "messages":
        tools = record.get("tools", ())
        if isinstance(tools, str) and tools:
            tools = _json(tools, "tools", where)
        if tools and not isinstance(tools, list):
            raise RecordError(f"{where} has {kind_of(tools)} in the field 'tools', not a list of JSON schemas")
        return Conversation(where, _messages(record["messages"], "messages", where), tools or ())
    if kind == "alpaca":
        question = _text(record, "instruction", where)
        if record.get("input"):
            question += "\n\n" + _text(record, "input", where)
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": _text(record, "output", where)},
        ]
    elif isinstance(record["prompt"], list) and isinstance(record["completion"], list):
        turns = [
            *_messages(record["prompt"], "prompt", where),
            *_messages(record["completion"], "completion", where),
        ]
    else:
        turns = [
            {"role": "user", "content": _text(record, "prompt", where)},
            {"role": "assistant", "content": _text(record, "completion", where)},
        ]
    if record.get("system"):
        turns.insert(0, {"role": "system", "content": _text(record, "system", where)})
    return Conversation(where, turns)


def _detect(record: dict[str, Any], where: str) -> str:
    for kind, names in _FIELDS.items():
        if all(name in record for name in names):
            return kind
    known = "; ".join(" and ".join(names) for names in _FIELDS.values())
    raise RecordError(f"{where} has the fields {_names(record)}, of no format known: give it {known}")


def _messages(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    if isinstance(value, str):
        value = _json(value, name, where)
    if not isinstance(value, list):
        raise RecordError(f"{where} has {kind_of(value)} in the field {name!r}, not a list of messages")
    if not value:
        raise RecordError(f"{where} has no message in the field {name!r}")
    return [_message(message, f"{name}.{index}", where) for index, message in enumerate(value)]


def _message(message: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RecordError(f"{where} has {kind_of(message)} in the field {name!r}, not an object with role and content")
    message = {key: value for key, value in message.items() if value is not None}
    role = message.get("role")
    if role is None:
        raise RecordError(f"{where} lacks the field '{name}.role' (the message has {_names(message)})")
    if role not in ROLES:
        near = difflib.get_close_matches(str(role), ROLES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use {', '.join(ROLES)}"
        raise RecordError(f"{where} has the unknown role {role!r} in the field '{name}.role'; {hint}")
    if role == "assistant" and message.get("tool_calls") and not message.get("content"):
        return {**message, "content": ""}
    _text(message, "content", where, f"{name}.content")
    return message


def _text(fields: dict[str, Any], name: str, where: str, shown: str = "") -> str:
    shown = shown or name
    text = fields.get(name, "")
    if not isinstance(text, str):
        raise RecordError(f"{where} has {kind_of(text)} in the field {shown!r}, not text")
    if not text.strip():
        raise RecordError(f"{where} has an empty turn: the field {shown!r} holds no text")
    return text


def _json(text: str, name: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as error:
        raise RecordError(f"{where} has text in the field {name!r} that is not JSON ({error})") from None


def _names(record: dict[str, Any]) -> str:
    names = [str(name) for name in record]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "none"
