"""Questions of a file: what they may be called, their rows, and the share that is right."""

import json
from pathlib import Path

import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte.evaluation.choices import Question, Task, figures_of, read_task, read_tasks, rows_of


def written(folder: Path, *records: object, name: str = "quiz.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder / name)


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        ({"context": "a", "choices": ["x", "y"], "answer": 1}, 1),
        ({"query": "a", "choices": ["x", "y"], "gold": 0}, 0),
        ({"question": "a", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, 1),
        ({"question": "a", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}, 1),
        ({"ctx": "a", "endings": ["x", "y"], "label": "1"}, 1),
        ({"prompt": "a", "options": ["x", "y"], "answer": "B"}, 1),
        ({"prompt": "a", "options": ["x", "y"], "answer": "y"}, 1),
        ({"question": "b", "context": "a", "choices": ["x", "y"], "answer": 0}, 0),
    ],
)
def test_what_a_question_may_be_called(record: dict, answer: int, tmp_path: Path) -> None:
    task = read_task(written(tmp_path, record))
    assert task == Task("quiz", [Question("a", ("x", "y"), answer)])


def test_the_delimiter_and_the_limit(tmp_path: Path) -> None:
    question = {"context": "", "choices": ["x", "y"], "answer": 1, "target_delimiter": ""}
    path = written(tmp_path, question, question, question)
    assert read_task(path, limit=2).questions == [Question("", ("x", "y"), 1, "")] * 2


def encode(text: str) -> list[int]:
    return list(text.encode())


def test_rows_are_context_and_choice_of_which_the_choice_is_scored() -> None:
    task = Task("t", [Question("ab", ("cd", "e"), 0), Question("f  ", ("g", "h"), 1, ""), Question("", ("ij", "k"), 0)])
    rows = list(rows_of(task, encode, 256, 100))
    assert [(bytes(row.ids[1:].tolist()), row.scored) for row in rows] == [
        *((b"ab cd", 3), (b"ab e", 2), (b"f  g", 3), (b"f  h", 3), (b" ij", 3), (b" k", 2))
    ]
    assert all(row.ids[0] == 256 for row in rows)
    short = [bytes(row.ids.tolist()) for row in rows_of(Task("t", task.questions[:1]), encode, 255, 4)]
    assert short == [b"ab cd"[-5:], b"\xffab e"[-5:]]
    with pytest.raises(UserError, match="question 1 of the task t has a choice of 3 tokens, and the model reads 2"):
        list(rows_of(task, encode, 256, 2))


def test_accuracy_by_the_choice_and_by_its_bytes() -> None:
    questions = [Question("", ("é" * 5, "b"), 0), Question("", ("a", "b"), 1), Question("", ("a", "b", "c"), 2)]
    log_p = [-15.0, -2.0, -1.0, -0.5, -3.0, -1.0, -2.0]
    found = figures_of(Task("t", questions), log_p)
    assert (found.accuracy, found.accuracy_by_bytes, found.questions) == (1 / 3, 2 / 3, 3)
    assert found.error == pytest.approx(np.std([1, 0, 0], ddof=1) / np.sqrt(3))


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"choices": ["x", "y"], "answer": 0}, r"quiz.jsonl:1 has none of the fields context, query"),
        ({"context": "a", "answer": 0}, "has none of the fields choices, endings, options"),
        ({"context": "a", "choices": ["x", "y"]}, r"has none of the fields answer, gold, label, answerKey"),
        ({"context": 3, "choices": ["x", "y"], "answer": 0}, "has a number as the context, not text"),
        ({"context": "a", "choices": ["x"], "answer": 0}, "has 1 choices, and a question needs at least two"),
        ({"context": "a", "choices": "xy", "answer": 0}, "has a string as the choices, not a list of at least two"),
        ({"context": "a", "choices": ["x", ""], "answer": 0}, "has '' among the choices, which is no text"),
        ({"context": "a", "choices": ["x", 3], "answer": 0}, "has 3 among the choices, which is no text"),
        ({"context": "a", "choices": ["x", "y"], "answer": 2}, "has the answer 2, which is none of the 2 choices"),
        ({"context": "a", "choices": ["x", "y"], "answer": "Z"}, "has the answer 'Z', which is none of the 2"),
        ({"context": "a", "choices": ["x", "y"], "answer": True}, "has the answer true, which is none of the 2"),
        ({"context": "a", "choices": ["x", "y"], "answer": 0, "target_delimiter": 1}, "as the target_delimiter"),
    ],
)
def test_what_is_no_question(record: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        read_task(written(tmp_path, record))


def test_what_is_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good = {"context": "a", "choices": ["x", "y"], "answer": 0}
    (tmp_path / "sub").mkdir()
    for path, sentence in (
        ("quiz.txt", "the task quiz.txt must be a file of questions: use .jsonl"),
        ("nowhere.jsonl", "the task nowhere.jsonl is no file: check the path"),
        (written(tmp_path, name="empty.jsonl"), "holds no question: write one record a line"),
        (written(tmp_path, good, name="a b.jsonl"), "gives figures the name 'a b': use letters, digits"),
        (written(tmp_path, good, name="x_by_bytes.jsonl"), "and no _by_bytes at the end"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_task(path)
    twice = [written(tmp_path, good), written(tmp_path / "sub", good)]
    with pytest.raises(UserError, match="two tasks are named quiz, after their files: rename one"):
        read_tasks(twice)
    assert [task.name for task in read_tasks([twice[0], written(tmp_path, good, name="other.jsonl.v2.jsonl")])] == [
        *("quiz", "other")
    ]
