"""What `stellarbyte memory` does and prints."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from stellarbyte.command_line import check_text
from stellarbyte.errors import UserError, one_line, shown, shown_path
from stellarbyte.memory.entries import Decision, Entry, iso_time
from stellarbyte.memory.memory import Memory
from stellarbyte.memory.protocols import Embedder, Judge
from stellarbyte.memory.settings import MemorySettings
from stellarbyte.places import Place
from stellarbyte.records.bad_records import BadRecords

_DAY = 86_400


def add(options: argparse.Namespace) -> None:
    """Adds texts, and prints what the gate has decided on each."""
    if options.days is not None and not 0 < options.days <= 36_500:
        raise UserError(f"--days {options.days} must be a number above 0 and at most 36500")
    expires = None if options.days is None else time.time() + options.days * _DAY
    with _opened(options, create=True) as memory:
        for text in _texts(options.text):
            decision = memory.add(text, source=options.source, kind=options.kind, expires=expires)
            _print(options, decision.to_dict(), _decision_line(decision))


def ingest(options: argparse.Namespace) -> None:
    """Puts documents into the memory, and prints what became of their passages."""
    from stellarbyte.memory.ingest.ingest import ingest as put

    def tell(path: Path, passages: int) -> None:
        if not options.json:
            print(f"{passages:>6} of {shown_path(path)}", flush=True)

    bad = BadRecords(options.on_bad_file, setting="--on-bad-file")
    with _opened(options, create=True) as memory:
        done = put(memory, options.paths, bad, tell)
    became = ", ".join([f"{done.kept} there already", *(f"{count} {name}" for name, count in done.outcomes.items())])
    line = f"{done.passages} passages of {done.files} files: {became}"
    removed = f"; {done.removed} removed that no file holds any more" if done.removed else ""
    _print(options, {**asdict(done), "skipped": bad.count}, f"{line}{removed}")
    if summary := bad.summary():
        print(summary, file=sys.stderr)


def search(options: argparse.Namespace) -> None:
    """Prints what a search finds."""
    query = " ".join(options.query)
    check_text("QUERY", query)
    with _opened(options) as memory:
        found = memory.search(query, options.limit, how=options.how, floor=options.floor)
        if memory.by_words_alone and options.how == "hybrid":
            print("search is by words alone: --embedder adds vectors", file=sys.stderr)
        for one in found:
            _print(options, one.to_dict(), f"{one.score:.2f}  {_entry_line(one.entry)}")
    if not found:
        print("nothing was found", file=sys.stderr)


def list(options: argparse.Namespace) -> None:
    """Prints entries."""
    with _opened(options) as memory:
        for entry in memory.list(limit=options.limit, kind=options.kind, newest=True):
            _print(options, entry.to_dict(), _entry_line(entry))


def delete(options: argparse.Namespace) -> None:
    """Deletes entries."""
    with _opened(options) as memory:
        missing = [number for number in options.id if memory.get(number) is None]
        if missing:
            raise UserError(f"{memory.name} has no entry {missing[0]}: `stellarbyte memory list` shows which there are")
        count = memory.delete(options.id)
    _print(options, {"deleted": count}, f"{count} deleted")


def update(options: argparse.Namespace) -> None:
    """Gives an entry another text."""
    with _opened(options) as memory:
        entry = memory.update(options.id, " ".join(options.text))
    _print(options, entry.to_dict(), _entry_line(entry))


def history(options: argparse.Namespace) -> None:
    """Prints the texts that an entry had, and the one that it has."""
    with _opened(options) as memory:
        entry = memory.get(options.id)
        if entry is None:
            raise UserError(f"{memory.name} has no entry {options.id}: `stellarbyte memory list` shows which there are")
        for old in memory.history(options.id):
            times = {"since": iso_time(old["since"]), "until": iso_time(old["until"])}
            line = f"{times['since']} to {times['until']}  {one_line(old['text'])}  ({old['reason']})"
            _print(options, {**old, **times}, line)
    _print(options, entry.to_dict(), f"{iso_time(entry.updated)} till now  {one_line(entry.text)}")


def log(options: argparse.Namespace) -> None:
    """Prints decisions, the newest first."""
    with _opened(options) as memory:
        for decision in memory.log(options.limit, outcome=options.outcome, entry=options.entry):
            _print(options, decision.to_dict(), f"{iso_time(decision.time)}  {_decision_line(decision)}")


def forget(options: argparse.Namespace) -> None:
    """Deletes all of a user."""
    with _opened(options) as memory:
        count = memory.forget()
    _print(options, {"deleted": count}, f"{count} deleted, and the log")


def audit(options: argparse.Namespace) -> int:
    """Prints what an audit has found; returns 1 if that is anything."""
    with _opened(options) as memory:
        found = memory.audit()
    if options.json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        for entry, reason in found.junk:
            print(f"junk       {_entry_line(entry)}: {reason}")
        for one, two, share in found.duplicates:
            print(f"duplicate  {_entry_line(two)}: entry {one.id} says the same ({share:.2f})")
        for name, count in found.ghosts.items():
            print(f"ghost      {count} {name} of entries that are gone: `stellarbyte memory export` and import mend it")
        counts = f"{len(found.junk)} junk, {len(found.duplicates)} duplicates, {sum(found.ghosts.values())} ghosts"
        print(f"{found.entries:,} entries: {counts}")
    return 1 if found.junk or found.duplicates or found.ghosts else 0


def export(options: argparse.Namespace) -> None:
    """Writes entries to a file."""
    with _opened(options) as memory:
        count = memory.export(options.file)
    _print(options, {"entries": count}, f"{count:,} entries are in {shown_path(options.file)}")


def import_(options: argparse.Namespace) -> None:
    """Adds the entries of a file."""
    with _opened(options, create=True) as memory:
        done = memory.load(options.file)
    secrets = f", {done.secrets} left out that hold secrets" if done.secrets else ""
    _print(options, done._asdict(), f"{done.added:,} added, {done.there:,} there already{secrets}")


def reembed(options: argparse.Namespace) -> None:
    """Makes all vectors anew."""
    made = 0

    def tell(count: int) -> None:
        nonlocal made
        made += count
        if not options.json:
            print(f"{made:>9,} vectors", flush=True)

    embedder = _embedder(options.embedder)
    with Memory(options.memory, create=False) as memory:
        memory.reembed(embedder, tell)
    _print(options, {"vectors": made, "embedder": embedder.name}, f"{made:,} vectors by {embedder.name}")


def settings(options: argparse.Namespace) -> None:
    """Prints the settings, and changes those that are given."""
    names = [field.name for field in fields(MemorySettings)]
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if "retention_days" in given:
        given["retention_days"] = _days(given["retention_days"])
    with _opened(options) as memory:
        if given:
            memory.settings = replace(memory.settings, **given)
        now = asdict(memory.settings)
    width = max(map(len, names))
    _print(options, now, "\n".join(f"{name:<{width}}  {shown(value)}" for name, value in now.items()))


def vacuum(options: argparse.Namespace) -> None:
    """Gives free room back."""
    with _opened(options) as memory:
        size = memory.vacuum()
    _print(options, {"bytes": size}, f"{size:,} bytes")


def users(options: argparse.Namespace) -> None:
    """Prints the users."""
    with _opened(options) as memory:
        for name, count in memory.users().items():
            _print(options, {"user": name, "entries": count}, f"{count:>9,}  {one_line(name) or '(without name)'}")


def _opened(options: argparse.Namespace, create: bool = False) -> Memory:
    user = getattr(options, "user", "")
    check_text("--user", user)
    folder, judge = getattr(options, "embedder", None), getattr(options, "judge", None)
    embedder = None if folder is None else _embedder(folder)
    return Memory(
        options.memory, embedder=embedder, judge=None if judge is None else _judge(judge), user=user, create=create
    )


def _embedder(folder: Place) -> Embedder:
    from stellarbyte.memory.embedders import hear_libraries, open_embedder

    hear_libraries(folder)
    return open_embedder(folder)


def _judge(folder: Place) -> Judge:
    from stellarbyte.memory.embedders import hear_libraries, open_reader
    from stellarbyte.memory.judges import ModelJudge

    hear_libraries(folder)
    return ModelJudge(open_reader(folder))


def _days(word: str) -> float | None:
    try:
        return None if word == "none" else float(word)
    except ValueError:
        raise UserError(f"--retention-days {shown(word)} must be a number of days, or none") from None


def _texts(given: Iterable[str]) -> Iterator[str]:
    for text in given:
        if text == "-":
            yield from (line for line in sys.stdin if line.strip())
        else:
            check_text("TEXT", text)
            yield text


def _print(options: argparse.Namespace, content: dict[str, Any], line: str) -> None:
    print(json.dumps(content, ensure_ascii=False) if options.json else line)


def _entry_line(entry: Entry) -> str:
    source = f"  ({one_line(entry.source)})" if entry.source else ""
    return f"{entry.id:>6}  {one_line(entry.text)}{source}"


def _decision_line(decision: Decision) -> str:
    scores = ", ".join(f"{name} {value:.2f}" for name, value in decision.scores.items())
    entry = "" if decision.entry is None else f" {decision.entry}"
    text = "" if decision.text is None else f": {one_line(decision.text)}"
    return f"{decision.outcome}{entry}  {decision.reason}{f' ({scores})' if scores else ''}{text}"
