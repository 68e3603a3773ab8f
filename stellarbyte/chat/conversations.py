"""Turns a record of any format into one conversation or one plain text; refuses records that cannot be trained on."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stellarbyte.chat.formats import FORMAT_FIELDS, RecordFormat
from stellarbyte.chat.template import REASONING
from stellarbyte.records.bad_records import RecordError, kind_of, names_of

_MOST_LEVELS = 64  # nested lists and objects in a message; JSON schemas of tools have about ten

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat template takes them, with the tools on offer; or, without messages, a plain text.

    untrained: indices of the assistant's messages that are not trained on, such as those of a prompt.
    """

    where: str
    messages: Sequence[dict[str, Any]] = ()
    tools: Sequence[Any] = ()
    text: str = ""
    untrained: frozenset[int] = frozenset()


def parse_record(record: object, where: str, record_format: RecordFormat = "auto") -> Conversation:
    """The conversation in a record that was found at `where`.

    - messages: a list of {role, content, …} (or that list as JSON text, for CSV), and optionally tools;
    - alpaca: instruction, output, and optionally input, which follows the instruction after a blank line;
    - prompt_completion: two texts, or two lists of messages; the prompt's messages are not trained on;
    - text: a plain text.

    An optional `system` text opens an alpaca or prompt_completion conversation. An optional `history` of
    [question, answer] pairs comes before a question that is a text. An assistant's message of weight 0 is not trained
    on. Nulls are ignored at every depth, because parquet has them where other records have a field.

    Raises:
        RecordError: the record is no object, a field is missing or has another type, a role is unknown, or a turn is
            empty.
    """
    if not isinstance(record, dict):
        raise RecordError(f"{where} is not a JSON object but {kind_of(record)}")
    record = {name: value for name, value in record.items() if value is not None}
    kind = _detect(record, where) if record_format == "auto" else record_format
    for name in FORMAT_FIELDS[kind]:
        if name not in record:
            raise RecordError(f"{where} lacks the field {name!r} of the format {kind} (it has {names_of(record)})")
    if kind == "text":
        return Conversation(where, text=_text(record, "text", where))
    if kind == "messages":
        if record.get("history"):
            raise RecordError(
                f"{where} has both messages and history, which is for records of instruction and output, or of prompt "
                "and completion: put it into the messages"
            )
        messages, untrained = _messages(record["messages"], "messages", where)
        return Conversation(where, messages, _tools(record, where), untrained=untrained)

    messages, untrained = _asked(record, kind, where)
    if record.get("system"):
        if messages[0]["role"] == "system":
            raise RecordError(f"{where} has two system texts, in the field 'system' and in 'prompt.0': keep one")
        messages.insert(0, {"role": "system", "content": _text(record, "system", where)})
        untrained = frozenset(index + 1 for index in untrained)
    return Conversation(where, messages, _tools(record, where), untrained=untrained)


def _detect(record: dict[str, Any], where: str) -> str:
    for kind, names in FORMAT_FIELDS.items():
        if all(name in record for name in names):
            return kind
    known = "; ".join(" and ".join(names) for names in FORMAT_FIELDS.values())
    raise RecordError(f"{where} has the fields {names_of(record)}, of no format known: give it {known}")


def _asked(record: dict[str, Any], kind: str, where: str) -> tuple[list[dict[str, Any]], frozenset[int]]:
    """(messages of an alpaca or prompt_completion record, indices of those that are not trained on)."""
    if kind == "alpaca":
        question, answer = _text(record, "instruction", where), _text(record, "output", where)
        if record.get("input"):
            question += "\n\n" + _text(record, "input", where)
    elif isinstance(record["prompt"], list) and isinstance(record["completion"], list):
        if record.get("history"):
            raise RecordError(f"{where} has both a prompt of messages and history: put it into the prompt")
        prompt, _ = _messages(record["prompt"], "prompt", where)
        completion, untrained = _messages(record["completion"], "completion", where)
        in_prompt = {index for index, message in enumerate(prompt) if message["role"] == "assistant"}
        return [*prompt, *completion], frozenset(in_prompt | {len(prompt) + index for index in untrained})
    else:
        question, answer = _text(record, "prompt", where), _text(record, "completion", where)
    pairs = [*_history(record.get("history"), where), (question, answer)]
    roles = ("user", "assistant")
    turns = [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
    return turns, frozenset()


def _history(value: Any, where: str) -> list[tuple[str, str]]:
    """The (question, answer) pairs that come before the record's own."""
    if isinstance(value, str) and value.strip():
        value = _json(value, "history", where)
    if not value:
        return []
    if not isinstance(value, list):
        raise RecordError(f"{where} has {kind_of(value)} in the field 'history', not a list of [question, answer]")
    pairs = []
    for index, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2:
            kind = f"a list of {len(pair)}" if isinstance(pair, list) else kind_of(pair)
            raise RecordError(f"{where} has {kind} in the field 'history.{index}', not [question, answer]")
        fields = dict(enumerate(pair))
        pairs.append(tuple(_text(fields, side, where, f"history.{index}.{side}") for side in (0, 1)))
    return [(question, answer) for question, answer in pairs]


def _tools(record: dict[str, Any], where: str) -> Sequence[Any]:
    tools = record.get("tools", ())
    if isinstance(tools, str):
        tools = _json(tools, "tools", where) if tools.strip() else ()
    if tools and not isinstance(tools, list):
        raise RecordError(f"{where} has {kind_of(tools)} in the field 'tools', not a list of JSON schemas")
    return _without_nulls(tools, "tools", where) if tools else ()


def _messages(value: Any, name: str, where: str) -> tuple[list[dict[str, Any]], frozenset[int]]:
    """(the messages, the indices of those whose weight is 0)."""
    if isinstance(value, str):
        value = _json(value, name, where)
    if not isinstance(value, list):
        raise RecordError(f"{where} has {kind_of(value)} in the field {name!r}, not a list of messages")
    if not value:
        raise RecordError(f"{where} has no message in the field {name!r}")
    messages = [_message(message, f"{name}.{index}", where) for index, message in enumerate(value)]
    untrained = frozenset(index for index, message in enumerate(messages) if message.pop("weight", 1) == 0)
    return messages, untrained


def _message(message: Any, name: str, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise RecordError(f"{where} has {kind_of(message)} in the field {name!r}, not an object with role and content")
    message = _without_nulls(message, name, where)
    role = message.get("role")
    if role is None:
        raise RecordError(f"{where} lacks the field '{name}.role' (the message has {names_of(message)})")
    if role not in ROLES:
        near = difflib.get_close_matches(str(role), ROLES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use {', '.join(ROLES)}"
        raise RecordError(f"{where} has the unknown role {role!r} in the field '{name}.role'; {hint}")
    _check_weight(message, name, where)
    calls = message.get("tool_calls")
    if calls is not None and not calls:  # parquet has an empty list where other messages have calls
        del message["tool_calls"]
    elif calls is not None and (role != "assistant" or not isinstance(calls, list)):
        kind = kind_of(calls) if role == "assistant" else f"a message of role {role}"
        raise RecordError(f"{where} has {kind} in the field '{name}.tool_calls', not a list of an assistant's calls")
    for key in REASONING:
        if role != "assistant" and message.get(key) == "":  # tables have it where other messages have thinking
            del message[key]
        if key in message and (role != "assistant" or not isinstance(message[key], str)):
            kind = kind_of(message[key]) if role == "assistant" else f"a message of role {role}"
            raise RecordError(f"{where} has {kind} in the field '{name}.{key}', not an assistant's text")
    if len({message[key] for key in REASONING if key in message}) > 1:
        names = " and ".join(key for key in REASONING if key in message)
        raise RecordError(f"{where} has {names} in {name!r}, which say different things: keep one")
    if role == "assistant" and message.get("tool_calls") and not message.get("content"):
        return {**message, "content": ""}
    _text(message, "content", where, f"{name}.content")
    return message


def _check_weight(message: dict[str, Any], name: str, where: str) -> None:
    """Checks a weight, which says, as in OpenAI's fine-tuning, whether an assistant's message is trained on."""
    weight = message.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in (0, 1):
        raise RecordError(f"{where} has {weight!r} in the field '{name}.weight': only 0 and 1 are weights here")
    if "weight" in message and weight == 1 and message["role"] != "assistant":
        raise RecordError(
            f"{where} has weight 1 in '{name}', of role {message['role']}: only the assistant's messages are trained on"
        )


def _without_nulls(value: Any, name: str, where: str, depth: int = 0) -> Any:
    if depth > _MOST_LEVELS:
        raise RecordError(f"{where} is nested deeper than {_MOST_LEVELS} levels in the field {name!r}")
    if isinstance(value, dict):
        return {key: _without_nulls(item, name, where, depth + 1) for key, item in value.items() if item is not None}
    return [_without_nulls(item, name, where, depth + 1) for item in value] if isinstance(value, list) else value


def _text(fields: dict[Any, Any], name: Any, where: str, shown: str = "") -> str:
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
