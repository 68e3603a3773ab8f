"""Multiple-choice questions of a file, as rows that a model scores, and the share that it answers right."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stellarbyte.errors import UserError, shown
from stellarbyte.evaluation.batches import Row
from stellarbyte.figures import task_name
from stellarbyte.records.bad_records import BadRecords, RecordError, check_text, kind_of, names_of
from stellarbyte.records.formats import file_format, read_records

# What the parts of a question are called; of several that a record has, the first counts. The later ones are those of
# lm-eval's tasks and of their data sets.
CONTEXTS = ("context", "query", "question", "ctx", "prompt")
CHOICES = ("choices", "endings", "options")
ANSWERS = ("answer", "gold", "label", "answerKey")
DELIMITER = "target_delimiter"

_FORMATS = (".jsonl", ".ndjson", ".json", ".parquet")
_NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True)
class Question:
    """A context, the texts that may go on from it, and the number of the right one.

    delimiter: stands between the context and each choice, as lm-eval's target_delimiter does.
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    delimiter: str = " "


@dataclass(frozen=True)
class Task:
    """The questions of a file, whose name without its suffix is the task's."""

    name: str
    questions: Sequence[Question]


@dataclass(frozen=True)
class TaskFigures:
    """Shares of questions that are answered right.

    accuracy: by the likeliest choice. accuracy_by_bytes: by the likeliest a byte, so that a long choice is not at a
    disadvantage (lm-eval's acc_bytes).
    """

    accuracy: float
    accuracy_by_bytes: float
    questions: int

    @property
    def error(self) -> float:
        """The standard error of the accuracy."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / max(1, self.questions - 1))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "accuracy_stderr": self.error}


def read_task(path: str, limit: int | None = None) -> Task:
    """The task in a file of questions, a record each.

    limit: the most questions that are read; None for all.

    Raises:
        UserError: there is no such file, its name is no name of a task, or a record is no question.
    """
    file = Path(path)
    if file_format(file) not in _FORMATS:
        raise UserError(f"the task {path} must be a file of questions: use {' '.join(_FORMATS)}")
    if not file.is_file():
        raise UserError(f"the task {path} is no file: check the path, which is relative to {Path.cwd()}")
    name = task_name(path)
    if not _NAME.fullmatch(name) or name.endswith("_by_bytes"):
        raise UserError(
            f"the task {path} gives figures the name {shown(name)}: use letters, digits and + - _, and no _by_bytes at "
            "the end"
        )
    questions: list[Question] = []
    bad_records = BadRecords("fail", setting=None)
    for record, where, _ in read_records(file, bad_records):
        try:
            questions.append(_question(record, where))
        except RecordError as error:
            bad_records.add(str(error))
        if len(questions) == limit:
            break
    if not questions:
        raise UserError(f"the task {path} holds no question: write one record a line")
    return Task(name, questions)


def read_tasks(paths: Sequence[str], limit: int | None = None) -> list[Task]:
    """The tasks of several files. Raises UserError where `read_task` does, or if two have one name."""
    tasks = [read_task(path, limit) for path in paths]
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two tasks are named {name}, after their files: rename one of these")
    return tasks


def rows_of(
    task: Task, encode: Callable[[str], Sequence[int] | np.ndarray], begin: int, positions: int
) -> Iterator[Row]:
    """A row for each choice of each question, in order: the token before a text, the context, and the choice.

    The tokens of a choice are those that the whole has more than the context, as in lm-eval; blanks at the end of the
    context belong to the choice. Of a row that is too long the beginning is left out.

    Raises:
        UserError: a choice alone is too long for the model.
    """
    for number, question in enumerate(task.questions):
        context = question.context.rstrip()
        before = len(encode(context)) if context else 0
        for choice in question.choices:
            whole = encode(question.context + question.delimiter + choice)
            ids = np.array([begin, *whole], np.int32)[-(positions + 1) :]
            scored = max(1, len(whole) - before)
            if scored > positions:
                raise UserError(
                    f"question {number + 1} of the task {task.name} has a choice of {scored} tokens, and the model "
                    f"reads {positions} at once: leave it out"
                )
            yield Row(ids, scored)


def figures_of(task: Task, log_p: Sequence[float]) -> TaskFigures:
    """The shares of right answers. log_p: the log-probability of each row of `rows_of`, in nats."""
    by_choice, by_bytes, first = 0, 0, 0
    for question in task.questions:
        stop = first + len(question.choices)
        log_p_C = np.array(log_p[first:stop], np.float64)
        bytes_C = np.array([len(choice.encode()) for choice in question.choices])
        by_choice += int(np.argmax(log_p_C)) == question.answer
        by_bytes += int(np.argmax(log_p_C / bytes_C)) == question.answer
        first = stop
    count = len(task.questions)
    return TaskFigures(by_choice / count, by_bytes / count, count)


def _question(record: Mapping[str, Any], where: str) -> Question:
    context, choices, answer = (_part(record, names, where) for names in (CONTEXTS, CHOICES, ANSWERS))
    delimiter = record.get(DELIMITER, " ")
    labels: list[Any] = []
    if isinstance(choices, Mapping):  # as in ARC: {"text": […], "label": ["A", …]}
        labels, choices = choices.get("label") or [], choices.get("text")
    for value, name in ((context, "context"), (delimiter, DELIMITER)):
        if not isinstance(value, str):
            raise RecordError(f"{where} has {kind_of(value)} as the {name}, not text")
        check_text(value, where)
    if not isinstance(choices, Sequence) or isinstance(choices, str):
        raise RecordError(f"{where} has {kind_of(choices)} as the choices, not a list of at least two texts")
    if len(choices) < 2:
        raise RecordError(f"{where} has {len(choices)} choices, and a question needs at least two")
    for choice in choices:
        if not isinstance(choice, str) or not choice.strip():
            raise RecordError(f"{where} has {shown(choice)} among the choices, which is no text that can be scored")
        check_text(choice, where)
    return Question(context, tuple(choices), _number(answer, choices, labels, where), delimiter)


def _part(record: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    found = next((record[name] for name in names if record.get(name) is not None), None)
    if found is None:
        raise RecordError(f"{where} has none of the fields {', '.join(names)} (it has {names_of(record)})")
    return found


def _number(answer: Any, choices: Sequence[str], labels: Sequence[Any], where: str) -> int:
    """The number of the right choice, which a record gives itself, or by its label, its text or a letter."""
    number: Any = answer
    if isinstance(answer, str):
        word = answer.strip()
        if answer in labels:
            number = list(labels).index(answer)
        elif answer in choices:
            number = list(choices).index(answer)
        elif word.isdecimal():
            number = int(word)
        elif len(word) == 1 and "A" <= word <= "Z":
            number = ord(word) - ord("A")
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(choices):
        raise RecordError(
            f"{where} has the answer {shown(answer)}, which is none of the {len(choices)} choices: give its number, "
            "from 0, its letter or its text"
        )
    return number
