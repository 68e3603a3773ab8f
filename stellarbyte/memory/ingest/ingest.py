"""Puts documents into a memory, and takes out what they no longer say."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stellarbyte.errors import UserError, shown_path
from stellarbyte.memory.entries import Entry
from stellarbyte.memory.ingest.documents import documents, passages_of
from stellarbyte.memory.ingest.passages import Passage
from stellarbyte.memory.memory import Memory
from stellarbyte.reading import expanded
from stellarbyte.records.bad_records import BadRecords, RecordError

# Passages whose vectors are made at once.
_AT_ONCE = 64
_SOURCE = re.compile(r"(.*)(?:#page=\d+|:\d+(?:-\d+)?)", re.DOTALL)


@dataclass
class Ingested:
    """What became of documents: the number of files and passages, of these by the gate's outcome, and of entries.

    Attributes:
        files: documents that were read.
        passages: what they were cut into.
        kept: passages that were in the store already, where they are now.
        outcomes: the number of the other passages by what the gate decided.
        removed: entries of passages that their files do not hold any more, or whose files are gone.
    """

    files: int = 0
    passages: int = 0
    kept: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    removed: int = 0


def ingest(
    memory: Memory,
    paths: Sequence[str],
    bad: BadRecords,
    on_file: Callable[[Path, int], None] = lambda _path, _passages: None,
) -> Ingested:
    """Cuts documents into passages, and hands those that the store does not have yet to its gate.

    A file that was read before loses the entries of passages that it does not hold any more; so do files that are gone
    from a folder that is read again, by the same name. Each file is dealt with at once: an interruption loses nothing.

    Args:
        memory: the store, opened for the user whose documents these are.
        paths: files, and folders whose documents are read.
        bad: hears of files and records that cannot be read, and decides whether that is the end.
        on_file: called after each file with its number of passages.

    Raises:
        UserError: a file is bad, and `bad` does not skip it; or the store cannot be written.
        ModuleNotFoundError: what reads a kind of file is not installed.
    """
    done = Ingested()
    there: set[str] = set()
    for path in documents(paths, bad):
        there.add(shown_path(path))
        try:
            passages = passages_of(path, bad)
        except RecordError as error:
            bad.add(str(error))
            continue
        except UserError as error:
            if bad.policy == "fail":
                raise
            bad.add(str(error))
            continue
        _take(memory, shown_path(path), passages, done)
        on_file(path, len(passages))
    for name in paths:
        folder = expanded(name)
        if folder.is_dir():
            inside = memory.list(kind="passage", source=f"{shown_path(folder).rstrip('/')}/")
            gone = [entry.id for entry in inside if file_of(entry.source) not in there]
            done.removed += memory.delete(gone)
    return done


def file_of(source: str) -> str:
    """The file that a passage's source names."""
    found = _SOURCE.fullmatch(source)
    return found[1] if found else source


def _take(memory: Memory, file: str, passages: Sequence[Passage], done: Ingested) -> None:
    before: list[Entry] = [
        entry
        for mark in (":", "#page=")
        for entry in memory.list(kind="passage", source=f"{file}{mark}")
        if file_of(entry.source) == file
    ]
    stay = {(entry.text, entry.source): entry.id for entry in before}
    new = [passage for passage in passages if (passage.text.strip(), passage.source) not in stay]
    kept = {stay.get((passage.text.strip(), passage.source)) for passage in passages}
    done.removed += memory.delete([entry.id for entry in before if entry.id not in kept])
    for place, passage in enumerate(new):
        if place % _AT_ONCE == 0:
            memory.prepare([one.text for one in new[place : place + _AT_ONCE]])
        outcome = memory.add(passage.text, source=passage.source, kind="passage").outcome
        done.outcomes[outcome] = done.outcomes.get(outcome, 0) + 1
    done.files += 1
    done.passages += len(passages)
    done.kept += len(passages) - len(new)
