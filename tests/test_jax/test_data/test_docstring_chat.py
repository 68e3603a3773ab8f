import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from stellarbyte import door
from stellarbyte.errors import UserError
from stellarbyte_jax.data.docstring_chat import conversations, write_stdlib_chat

SOURCE = '''
"""A module   for
tests.

More.
"""

def put(item, /, *rest, key=None) -> int:
    """Put an item."""

def put(other):
    """The second of this name."""

async def fetch(): "Fetch it all."

def signature(x):
    """signature(x) -> y"""

def listed(x):
    """These are there:

    - x"""

def example(x):
    """Show how.
    >>> example(1)"""

def _hidden(): "Is not asked about."

def undocumented(): pass

try:
    class Queue:
        """A queue (first in, first out)."""

        def __init__(self, maxsize=0, *, name: str = "q"):
            """Is not asked about."""
            def inner(): "Is not asked about."

        @property
        def size(self): "Items that wait."

        @size.setter
        def size(self, value): "Is not asked about."

        @classmethod
        def of(cls, items=()): "Make a queue of items."

        @staticmethod
        def limit(most=9): "Tell the limit."

        def get(self=None): "Take an item out."

        class Empty(Exception):
            """Raised when nothing waits."""
except ImportError:
    def internal(): "Internal use only."
'''

EXPECTED = [
    [("What is the module `queues.tools` for?", "A module for tests.")],
    [
        ("What does the function `queues.tools.put` do?", "Put an item."),
        ("How is it called?", "`put(item, /, *rest, key=None) -> int`"),
    ],
    [("What does the function `queues.tools.fetch` do?", "Fetch it all."), ("How is it called?", "`fetch()`")],
    [
        ("What is the class `queues.tools.Queue`?", "A queue (first in, first out)."),
        ("How is it created?", "`Queue(maxsize=0, *, name: str='q')`"),
    ],
    [("What is the property `queues.tools.Queue.size`?", "Items that wait.")],
    [
        ("What does the method `queues.tools.Queue.of` do?", "Make a queue of items."),
        ("How is it called?", "`of(items=())`"),
    ],
    [
        ("What does the method `queues.tools.Queue.limit` do?", "Tell the limit."),
        ("How is it called?", "`limit(most=9)`"),
    ],
    [("What does the method `queues.tools.Queue.get` do?", "Take an item out."), ("How is it called?", "`get()`")],
    [("What is the class `queues.tools.Queue.Empty`?", "Raised when nothing waits.")],
]


def pairs(messages: list[dict[str, str]]) -> list[tuple[str, str]]:
    assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
    contents = [message["content"] for message in messages]
    return list(zip(contents[::2], contents[1::2], strict=True))


def test_what_is_asked_about_a_file() -> None:
    assert [pairs(messages) for messages in conversations("queues/tools.py", SOURCE)] == EXPECTED
    assert pairs(next(conversations("queues/__init__.py", SOURCE)))[0][0] == "What is the module `queues` for?"


@pytest.mark.parametrize("file", ["_private.py", "a/_b/c.py", "no-name.py", "__init__.py", "idlelib/run.py"])
def test_files_that_are_not_asked_about(file: str) -> None:
    assert not list(conversations(file, SOURCE))


def test_source_that_is_none() -> None:
    assert not list(conversations("x.py", "def (:"))
    assert not list(conversations("x.py", ""))


def test_the_standard_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chat.jsonl"
    assert door.main(["corpus", "stdlib", "--chat", str(path)]) == 0
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    asked = [pair for record in records for pair in pairs(record["messages"])]
    assert f"{len(records)} conversations of {len(asked)} question/answer pairs, " in capsys.readouterr().out
    assert len(records) > 3000
    assert len({pair[0] for pair in asked if not pair[0].startswith("How")}) == len(records)
    assert all(answer == answer.strip() and len(answer) <= 600 for _, answer in asked)

    again = tmp_path / "again.jsonl"
    assert write_stdlib_chat(again) == (len(records), len(asked))
    assert again.read_bytes() == path.read_bytes()


def test_answers_are_what_python_itself_says(tmp_path: Path) -> None:
    write_stdlib_chat(tmp_path / "chat.jsonl")
    checked = 0
    for line in (tmp_path / "chat.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        if record["path"] not in ("json/__init__.py", "textwrap.py", "argparse.py", "pathlib.py", "shutil.py"):
            continue
        (question, answer), *more = pairs(record["messages"])
        module = importlib.import_module(record["path"].removesuffix(".py").removesuffix("/__init__"))
        found: Any = module
        for name in question.split("`")[1].split(".")[1:]:
            found = getattr(found, name)
        assert (inspect.getdoc(found) or "").split("\n\n")[0].split() == answer.split(), question
        if more and inspect.isfunction(found):
            parameters = [name for name in inspect.signature(found).parameters if name not in ("self", "cls")]
            assert all(name in more[0][1] for name in parameters), more
        checked += 1
    assert checked > 40


def test_the_output_must_be_jsonl(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"let its name end in \.jsonl"):
        write_stdlib_chat(tmp_path / "x.json")
    assert not list(tmp_path.iterdir())
