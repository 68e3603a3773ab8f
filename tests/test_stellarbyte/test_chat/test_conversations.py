import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from stellarbyte.chat.conversations import Conversation, parse_record
from stellarbyte.records.bad_records import BadRecords, RecordError
from stellarbyte.records.formats import read_records

ASKED = {"role": "user", "content": "Why?"}
ANSWERED = {"role": "assistant", "content": "So."}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": [ASKED, ANSWERED], "text": "not this"}, Conversation("x:1", [ASKED, ANSWERED])),
        ({"messages": json.dumps([ASKED]), "tools": ""}, Conversation("x:1", [ASKED])),
        ({"messages": [ASKED], "tools": '[{"name": "f"}]'}, Conversation("x:1", [ASKED], [{"name": "f"}])),
        ({"messages": [ASKED | {"name": None}], "tools": None}, Conversation("x:1", [ASKED])),
        ({"prompt": "Why?", "completion": "So."}, Conversation("x:1", [ASKED, ANSWERED])),
        ({"prompt": [ASKED], "completion": [ANSWERED]}, Conversation("x:1", [ASKED, ANSWERED])),
        ({"instruction": "Why?", "input": "", "output": "So."}, Conversation("x:1", [ASKED, ANSWERED])),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be short."},
            Conversation(
                "x:1",
                [
                    {"role": "system", "content": "Be short."},
                    {"role": "user", "content": "Add.\n\n1 2"},
                    {"role": "assistant", "content": "3"},
                ],
            ),
        ),
        ({"text": "A star.", "label": 3}, Conversation("x:1", text="A star.")),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]},
            Conversation("x:1", [{"role": "assistant", "tool_calls": [{"name": "f"}], "content": ""}]),
        ),
    ],
)
def test_the_fields_say_what_a_record_is(record: dict, expected: Conversation) -> None:
    assert parse_record(record, "x:1") == expected


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ([ASKED], "x:1 is not a JSON object but a list"),
        ({"question": "Why?"}, "has the fields question, of no format known: give it messages; instruction and output"),
        ({"messages": []}, "has no message in the field 'messages'"),
        ({"messages": "Why?"}, "has text in the field 'messages' that is not JSON"),
        ({"messages": 3}, "has a number in the field 'messages', not a list of messages"),
        ({"messages": ["Why?"]}, "has a string in the field 'messages.0', not an object with role and content"),
        ({"messages": [{"content": "x"}]}, "lacks the field 'messages.0.role' (the message has content)"),
        (
            {"messages": [ASKED, {"role": "assistent", "content": "x"}]},
            "has the unknown role 'assistent' in the field 'messages.1.role'; did you mean assistant?",
        ),
        ({"messages": [{"role": "bot", "content": "x"}]}, "use system, user, assistant, tool"),
        (
            {"messages": [ASKED, {"role": "assistant", "content": " \n"}]},
            "the field 'messages.1.content' holds no text",
        ),
        ({"messages": [{"role": "user"}]}, "has an empty turn: the field 'messages.0.content' holds no text"),
        ({"messages": [ASKED], "tools": {}, "text": ""}, None),
        ({"messages": [ASKED], "tools": {"name": "f"}}, "has an object in the field 'tools', not a list"),
        ({"prompt": [ASKED], "completion": "So."}, "has a list in the field 'prompt', not text"),
        ({"instruction": "x", "output": ""}, "has an empty turn: the field 'output' holds no text"),
        ({"text": 3}, "has a number in the field 'text', not text"),
    ],
)
def test_what_nobody_could_train_on(record: object, complaint: str | None) -> None:
    if complaint is None:
        assert parse_record(record, "x:1").tools == ()
        return
    with pytest.raises(RecordError) as error:
        parse_record(record, "x:1")
    assert str(error.value).startswith("x:1 ")
    assert complaint in str(error.value)


CHAT = [{"role": "user", "content": "春眠?"}, {"role": "assistant", "content": "不觉晓,\nyes"}]
RECORDS = [{"messages": CHAT}, {"messages": [{"role": "system", "content": "Be short."}, *CHAT]}]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(record) for record in records), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=2), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(records[0])
            rows.writerows(
                [value if isinstance(value, str) else json.dumps(value, indent=1) for value in record.values()]
                for record in records
            )
    else:
        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def read(path: Path) -> list[tuple[dict[str, Any], str]]:
    return [(record.fields, record.where) for record in read_records(path, BadRecords("fail"))]


@pytest.mark.parametrize(
    ("name", "places"),
    [("x.jsonl", [1, 3]), ("x.json", [2, 14]), ("x.csv", [2, 12]), ("x.parquet", [1, 2])],
)
def test_every_format_gives_the_same_conversations(name: str, places: list[int], tmp_path: Path) -> None:
    path = write(tmp_path / name, RECORDS)
    found = [parse_record(record, where) for record, where in read(path)]
    assert [conversation.where for conversation in found] == [f"{path}:{place}" for place in places]
    assert [list(conversation.messages) for conversation in found] == [record["messages"] for record in RECORDS]


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"instruction": "Add.", "input": "1 + 1", "output": "2"}, [("user", "Add.\n\n1 + 1"), ("assistant", "2")]),
        ({"instruction": "Add.", "input": "", "output": "2"}, [("user", "Add."), ("assistant", "2")]),
        (
            {"prompt": "p", "completion": "c", "system": "s", "id": 3},
            [("system", "s"), ("user", "p"), ("assistant", "c")],
        ),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, [(turn["role"], turn["content"]) for turn in CHAT]),
        ({"messages": json.dumps(CHAT)}, [(turn["role"], turn["content"]) for turn in CHAT]),
        ({"messages": [CHAT[0] | {"name": None}]}, [("user", "春眠?")]),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [1]}, {"role": "tool", "content": "2"}]},
            [("assistant", ""), ("tool", "2")],
        ),
    ],
)
def test_fields_become_messages(record: dict[str, Any], messages: list[tuple[str, str]]) -> None:
    found = parse_record(record, "x:1")
    assert [(message["role"], message["content"]) for message in found.messages] == messages
    assert all(None not in message.values() for message in found.messages)


def test_a_text_and_the_format_that_is_asked_for() -> None:
    both = {"text": "a text", "prompt": "p", "completion": "c"}
    assert parse_record(both, "x:1", "text").text == "a text"
    assert len(parse_record(both, "x:1").messages) == 2
    assert parse_record({"messages": CHAT, "tools": "[1]"}, "x:1").tools == [1]


@pytest.mark.parametrize(
    ("record", "record_format", "complaint"),
    [
        ({"chat": 1}, "auto", "x:7 has the fields chat, of no format known: give it messages; instruction and output;"),
        ({}, "auto", "x:7 has the fields none, of no format"),
        ({"instruction": "x"}, "alpaca", "x:7 lacks the field 'output' of the format alpaca (it has instruction)"),
        ({"messages": "no"}, "auto", "x:7 has text in the field 'messages' that is not JSON"),
        ({"messages": 3}, "auto", "x:7 has a number in the field 'messages', not a list of messages"),
        ({"messages": []}, "auto", "x:7 has no message in the field 'messages'"),
        ({"messages": ["x"]}, "auto", "x:7 has a string in the field 'messages.0', not an object with role and"),
        ({"messages": [{"from": "x"}]}, "auto", "x:7 lacks the field 'messages.0.role' (the message has from)"),
        (
            {"messages": [*CHAT, {"role": "asistant", "content": "x"}]},
            "auto",
            "x:7 has the unknown role 'asistant' in the field 'messages.2.role'; did you mean assistant?",
        ),
        ({"messages": [{"role": "human"}]}, "auto", "use system, user, assistant, tool"),
        ({"messages": [{"role": ["user"]}]}, "auto", "x:7 has the unknown role ['user']"),
        (
            {"messages": [{"role": "user", "content": " \n"}]},
            "auto",
            "x:7 has an empty turn: the field 'messages.0.con",
        ),
        ({"messages": [{"role": "user"}]}, "auto", "x:7 has an empty turn"),
        ({"messages": [{"role": "user", "content": [1]}]}, "auto", "x:7 has a list in the field 'messages.0.content'"),
        ({"messages": CHAT, "tools": {}}, "auto", None),
        ({"messages": CHAT, "tools": {"x": 1}}, "auto", "x:7 has an object in the field 'tools', not a list of JSON"),
        ({"prompt": "x", "completion": ""}, "auto", "x:7 has an empty turn: the field 'completion' holds no text"),
        ({"prompt": "x", "completion": 3}, "auto", "x:7 has a number in the field 'completion', not text"),
        ({"text": "\n"}, "auto", "x:7 has an empty turn: the field 'text' holds no text"),
    ],
)
def test_bad_records_are_named(record: dict[str, Any], record_format: Any, complaint: str | None) -> None:
    if complaint is None:
        parse_record(record, "x:7", record_format)
        return
    with pytest.raises(RecordError) as error:
        parse_record(record, "x:7", record_format)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
