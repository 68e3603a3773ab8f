"""Writes a user's entries to a file of JSON lines, and reads such files."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from stellarbyte.errors import UserError, shown, shown_path
from stellarbyte.files import written_whole
from stellarbyte.memory.checks import checked_text
from stellarbyte.memory.entries import KINDS, Entry, iso_time
from stellarbyte.memory.gate.frames import frames_of
from stellarbyte.memory.gate.secrets import secret_in
from stellarbyte.memory.opening import Opened
from stellarbyte.memory.sqlite_file import is_sqlite
from stellarbyte.memory.tables import Alive
from stellarbyte.memory.words import language_of
from stellarbyte.reading import parse_json

_LONGEST_LINE = 8 << 20
# Entries that are written or read at once, and those from which on the database should know of them.
_BATCH, _MANY = 5_000, 1_000
_TIMES = ("created", "updated", "last_used", "expires")

History = list[dict[str, Any]]


class Loaded(NamedTuple):
    """What became of the lines of a file.

    Attributes:
        added: new entries.
        there: texts that the user has already.
        secrets: texts that were left out because they look like secrets.
    """

    added: int
    there: int
    secrets: int


def export(store: Opened, owner: str, path: Path, alive: Alive) -> int:
    """Writes a line for each entry, with its history; returns their number.

    Raises:
        UserError: the file cannot be written, or is a memory itself, which would be lost.
    """
    if _is_memory(path):
        raise UserError(f"{shown_path(path)} is an SQLite file, such as a memory, and would be lost: name another file")
    count = after = 0
    with written_whole(path) as file, store.connection.reading():
        while entries := store.tables.listed(owner, alive, after=after, limit=_BATCH):
            after = entries[-1].id
            histories = store.tables.histories([entry.id for entry in entries])
            for entry in entries:
                old = [
                    {**one, "since": iso_time(one["since"]), "until": iso_time(one["until"])}
                    for one in histories[entry.id]
                ]
                file.write(json.dumps({**entry.to_dict(), "history": old}, ensure_ascii=False) + "\n")
            count += len(entries)
    return count


def _is_memory(path: Path) -> bool:
    with suppress(OSError):  # what cannot be read is told of when it is written
        return is_sqlite(path)
    return False


def load(store: Opened, owner: str, path: Path) -> Loaded:
    """Adds the lines of a file to a user's entries, in one transaction; the gate asks only whether they hold secrets.

    A line needs a text; source, kind, the times, uses, seen and history are read where they are there.

    Raises:
        UserError: the file cannot be read, or a line is no such entry: then nothing was added.
    """
    added = there = secrets = 0
    with store.connection.writing():
        lines = _lines(path)
        while some := list(islice(lines, _BATCH)):
            found = [_entry(line, owner, where) for where, line in some]
            fit = [one for one in found if not (secret_in(one[0].text) or secret_in(one[0].source))]
            secrets += len(found) - len(fit)
            new = store.tables.new_texts(owner, [entry.text for entry, _ in fit])
            there += len(fit) - len(new)
            _add(store, owner, [fit[place] for place in new])
            added += len(new)
    if added >= _MANY:
        store.connection.settle()
    return Loaded(added, there, secrets)


def _add(store: Opened, owner: str, found: Sequence[tuple[Entry, History]]) -> None:
    ids = store.tables.insert_all(owner, [entry for entry, _ in found])
    frames: list[tuple[str, str, int]] = []
    for number, (entry, history) in zip(ids, found, strict=True):
        frames += ((owner, key, number) for key in sorted({frame.key for frame in frames_of(entry.text)}))
        if history:
            store.tables.add_history(number, history)
    store.tables.add_frames(frames)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    name = shown_path(path)
    try:
        if not path.is_file():
            raise UserError(f"{name} is {'no file' if path.exists() else 'not there'}: name a file of JSON lines")
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), b""), 1):
                where = f"{name}:{number}"
                if len(line) > _LONGEST_LINE:
                    raise UserError(f"{where} is longer than {_LONGEST_LINE >> 20} MiB")
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise UserError(f"{where} is not UTF-8 text") from None
                if text.strip():
                    value = parse_json(text, where)
                    if not isinstance(value, dict):
                        raise UserError(f"{where} holds {shown(value)}, expected an object with a text")
                    yield where, value
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}") from None


def _entry(line: dict[str, Any], owner: str, where: str) -> tuple[Entry, History]:
    text = checked_text(line.get("text", ""), f"{where}: text").strip()
    if not text:
        raise UserError(f"{where} has no text")
    kind = line.get("kind", "note")
    if kind not in KINDS:
        raise UserError(f"{where}: kind {shown(kind)} must be {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    times = {name: _time(line.get(name), f"{where}: {name}") for name in _TIMES}
    counts = {name: line.get(name, default) for name, default in (("uses", 0), ("seen", 1))}
    for name, count in counts.items():
        if type(count) is not int or not 0 <= count < 1 << 31:
            raise UserError(f"{where}: {name} {shown(count)} must be a count")
    now = time.time()
    created = times["created"] or now
    history = line.get("history", [])
    if not isinstance(history, list) or not all(isinstance(old, dict) for old in history):
        raise UserError(f"{where}: history must be a list of objects")
    old_texts = [
        {
            **{name: checked_text(old.get(name, ""), f"{where}: history") for name in ("text", "source", "reason")},
            **{name: _time(old.get(name), f"{where}: history") or created for name in ("since", "until")},
        }
        for old in history
    ]
    entry = Entry(
        0, text, checked_text(line.get("source", ""), f"{where}: source"), owner, kind, language_of(text), created,
        times["updated"] or created, times["last_used"], counts["uses"], counts["seen"], times["expires"],
    )  # fmt: skip
    return entry, old_texts


def _time(value: object, where: str) -> float | None:
    """Seconds since 1970 of an ISO 8601 time or of such seconds."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            return datetime.fromisoformat(value).timestamp()
        if type(value) in (int, float) and 0 <= float(value) < 1e11:  # type: ignore[arg-type]
            return float(value)  # type: ignore[arg-type]
    except (ValueError, OverflowError, OSError):
        pass
    raise UserError(f"{where} {shown(value)} must be a time such as 2026-12-01T09:30:00Z")
