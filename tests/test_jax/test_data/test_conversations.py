import json

import pytest

from stellarbyte.records.bad_records import RecordError
from stellarbyte_jax.data.conversations import Conversation, parse_record

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
