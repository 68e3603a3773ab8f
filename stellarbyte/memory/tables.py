"""Reads and writes the tables of a store; each method is a part of a transaction that the caller has begun."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from stellarbyte.memory.connection import Connection, Row, marks
from stellarbyte.memory.decision_log import DecisionLog
from stellarbyte.memory.entries import Entry, Kind
from stellarbyte.memory.vector_table import VectorTable
from stellarbyte.memory.word_index import WordIndex
from stellarbyte.memory.words import language_of, plain, terms_of

_COLUMNS = (
    "owner, kind, text, source, language, created, updated, last_used, uses, seen, fresh, expires, loss, judge, "
    "digest, terms"
)
_ENTRY = "id, text, source, owner, kind, language, created, updated, last_used, uses, seen, expires"

# What the history keeps of a text.
_OLD = ("text", "source", "since", "until", "reason")
# Entries whose terms are written at once.
_BATCH = 10_000


class Alive(NamedTuple):
    """What entries must outlive: the present time, and the time after which they were last said or used."""

    now: float
    fresh_after: float


class Tables:
    """The tables behind a connection.

    Attributes:
        words: the index of terms.
        vectors: those of the entries.
        decisions: the log.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows, self._run = connection.rows, connection.run
        self.words = WordIndex(connection)
        self.vectors = VectorTable(connection)
        self.decisions = DecisionLog(connection)

    def meta(self) -> dict[str, str]:
        """What the store says of itself."""
        return dict(self._rows("SELECT key, value FROM meta"))

    def set_meta(self, key: str, value: str) -> None:
        """Writes one such line."""
        upsert = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        self._run(upsert, (key, value))

    def entries(self, ids: Sequence[int], alive: Alive) -> dict[int, Entry]:
        """The entries with these ids, as far as there are such."""
        condition, values = self._connection.among("id", ids)
        where = f"{condition} AND (expires IS NULL OR expires > ?) AND fresh > ?"
        rows = self._rows(f"SELECT {_ENTRY} FROM memories WHERE {where}", [*values, *alive]) if ids else []
        return {row[0]: _entry(row) for row in rows}

    def listed(
        self,
        owner: str,
        alive: "Alive",
        *,
        after: int = 0,
        limit: int = -1,
        kind: str | None = None,
        source: str | None = None,
        newest: bool = False,
    ) -> list[Entry]:
        """A user's entries by id; after: the id to go on from, in the order's direction; source: its beginning."""
        where, parameters = "owner = ? AND (expires IS NULL OR expires > ?) AND fresh > ?", [owner, *alive]
        if after:
            where, parameters = f"{where} AND id {'<' if newest else '>'} ?", [*parameters, after]
        if kind is not None:
            where, parameters = f"{where} AND kind = ?", [*parameters, kind]
        if source:
            where, parameters = f"{where} AND source >= ? AND source < ?", [*parameters, source, _after(source)]
        order = f"ORDER BY id{' DESC' if newest else ''}"
        if limit >= 0:
            order, parameters = f"{order} LIMIT ?", [*parameters, limit]
        return [_entry(row) for row in self._rows(f"SELECT {_ENTRY} FROM memories WHERE {where} {order}", parameters)]

    def sampled(self, owner: str, count: int) -> list[Entry]:
        """So many of a user's entries, spread over their ids as evenly as these are; fewer where ids are missing."""
        ((first, last),) = self._rows("SELECT MIN(id), MAX(id) FROM memories WHERE owner = ?", (owner,))
        if first is None:
            return []
        least = [first + (last - first + 1) * place // count for place in range(count)]
        places = ", ".join(["(CAST(? AS BIGINT))"] * count)
        ids = (
            f"WITH places (least) AS (VALUES {places}) SELECT (SELECT MIN(id) FROM memories WHERE owner = ? AND "
            "id >= least) FROM places"
        )
        statement = f"SELECT {_ENTRY} FROM memories WHERE id IN ({ids}) ORDER BY id"
        return [_entry(row) for row in self._rows(statement, [*least, owner])]

    def new_texts(self, owner: str, texts: Sequence[str]) -> list[int]:
        """The places of those texts that no entry and none before has, but for case, accents and spaces."""
        digests = [_digest(text) for text in texts]
        condition, values = self._connection.among("digest", sorted(set(digests)))
        rows = self._rows(f"SELECT digest FROM memories WHERE owner = ? AND {condition}", [owner, *values])
        there, new = {digest for (digest,) in rows}, list[int]()
        for place, digest in enumerate(digests):
            if digest not in there:
                there.add(digest)
                new.append(place)
        return new

    def insert(self, entry: Entry, loss: float | None = None, judge: str | None = None) -> int:
        """Writes an entry, whose own id is not used; returns its id."""
        terms = Counter(terms_of(entry.text))
        row = _row(entry, len(terms), loss, judge)
        ((number,),) = self._rows(f"INSERT INTO memories ({_COLUMNS}) VALUES ({marks(row)}) RETURNING id", row)
        self.words.put(number, entry.user, terms)
        return int(number)

    def insert_all(self, owner: str, entries: Sequence[Entry]) -> list[int]:
        """Writes many entries of a user, whose own ids are not used; returns their ids."""
        ids = self._connection.new_ids(len(entries))
        terms = [Counter(terms_of(entry.text)) for entry in entries]
        rows = [(number, *_row(entry, len(some))) for number, entry, some in zip(ids, entries, terms, strict=True)]
        self._connection.bulk("memories", f"id, {_COLUMNS}", rows)
        self.words.put_all(owner, dict(zip(ids, terms, strict=True)))
        return ids

    def change_text(
        self,
        entry: Entry,
        text: str,
        *,
        source: str,
        now: float,
        reason: str,
        loss: float | None = None,
        judge: str | None = None,
    ) -> None:
        """Gives an entry another text; the old one goes into the history. Its vector is gone."""
        old = {"text": entry.text, "source": entry.source, "since": entry.updated, "until": now, "reason": reason}
        self.add_history(entry.id, [old])
        self.words.remove([entry.id])
        terms = Counter(terms_of(text))
        self._run(
            "UPDATE memories SET text = ?, source = ?, language = ?, updated = ?, fresh = ?, loss = ?, judge = ?, "
            "digest = ?, terms = ? WHERE id = ?",
            (text, source, language_of(text), now, now, loss, judge, _digest(text), len(terms), entry.id),
        )
        self.words.put(entry.id, entry.user, terms)
        self.vectors.delete([entry.id])

    def used(self, ids: Sequence[int], now: float) -> None:
        """Counts a use of entries."""
        condition, values = self._connection.among("id", ids)
        self._run(
            f"UPDATE memories SET uses = uses + 1, last_used = ?, fresh = ? WHERE {condition}", [now, now, *values]
        )

    def said_again(self, number: int, now: float) -> None:
        """Counts that an entry was said once more."""
        self._run("UPDATE memories SET seen = seen + 1, fresh = ? WHERE id = ?", (now, number))

    def delete(self, ids: Sequence[int]) -> None:
        """Deletes entries with all that was derived from them: terms, vectors, history, and texts in the log."""
        self.words.remove(ids)
        inside, values = self._connection.among("memory", ids)
        for table in ("history", "frames"):
            self._run(f"DELETE FROM {table} WHERE {inside}", values)
        self._run(f"UPDATE decisions SET text = NULL, source = '' WHERE {inside}", values)
        inside, values = self._connection.among("id", ids)
        self._run(f"DELETE FROM memories WHERE {inside}", values)
        self.vectors.delete(ids)

    def forget(self, owner: str) -> int:
        """Deletes all of a user, the log too; returns the number of entries."""
        entries, _ = self.words.totals(owner)
        inside = "memory IN (SELECT id FROM memories WHERE owner = ?)"
        self.vectors.forget(owner)
        self._run(f"DELETE FROM history WHERE {inside}", (owner,))
        for table in ("memories", "frames", "decisions"):
            self._run(f"DELETE FROM {table} WHERE owner = ?", (owner,))
        self.words.forget(owner)
        return entries

    def add_history(self, number: int, texts: Sequence[Mapping[str, Any]]) -> None:
        """Adds texts that an entry had, from the oldest."""
        statement = f"INSERT INTO history (memory, {', '.join(_OLD)}) VALUES (?, {marks(_OLD)})"
        self._connection.many(statement, [(number, *(old[name] for name in _OLD)) for old in texts])

    def histories(self, ids: Sequence[int]) -> dict[int, list[dict[str, Any]]]:
        """Of each of these entries the texts that it had, from the oldest."""
        found: dict[int, list[dict[str, Any]]] = {number: [] for number in ids}
        condition, values = self._connection.among("memory", ids)
        statement = f"SELECT memory, {', '.join(_OLD)} FROM history WHERE {condition} ORDER BY id"
        for number, *old in self._rows(statement, values):
            found[number].append(dict(zip(_OLD, old, strict=True)))
        return found

    def expired(self, alive: Alive) -> list[tuple[int, str]]:
        """The ids and users of entries whose time has come."""
        statement = (
            "SELECT id, owner FROM memories WHERE expires <= ? UNION SELECT id, owner FROM memories WHERE fresh <= ?"
        )
        return cast("list[tuple[int, str]]", self._rows(statement, alive))

    def least_used(self, owner: str, count: int) -> list[int]:
        """The entries to evict first: those of the fewest uses and mentions, and among these the oldest."""
        order = "ORDER BY uses + seen, fresh, id LIMIT ?"
        return [row[0] for row in self._rows(f"SELECT id FROM memories WHERE owner = ? {order}", (owner, count))]

    def set_frames(self, number: int, owner: str, frames: Iterable[str]) -> None:
        """Writes the keys of an entry's frames."""
        self._run("DELETE FROM frames WHERE memory = ?", (number,))
        self.add_frames([(owner, frame, number) for frame in frames])

    def add_frames(self, rows: Iterable[tuple[str, str, int]]) -> None:
        """Writes users, keys of frames, and the entries that have none yet."""
        self._connection.many("INSERT INTO frames (owner, frame, memory) VALUES (?, ?, ?)", rows)

    def of_frames(self, owner: str, frames: Sequence[str]) -> list[int]:
        """A user's entries that have one of these frames, the newest first."""
        if not frames:
            return []
        condition, values = self._connection.among("frame", frames)
        statement = f"SELECT DISTINCT memory FROM frames WHERE owner = ? AND {condition} ORDER BY memory DESC"
        return [number for (number,) in self._rows(statement, [owner, *values])]

    def share_below(self, owner: str, judge: str, loss: float, least: int) -> float | None:
        """The share of a user's entries that surprised a judge less than `loss`; None: fewer than `least` did."""
        where = "FROM memories WHERE owner = ? AND judge = ? AND loss IS NOT NULL"
        ((count,),) = self._rows(f"SELECT COUNT(*) {where}", (owner, judge))
        if count < least:
            return None
        ((below,),) = self._rows(f"SELECT COUNT(*) {where} AND loss < ?", (owner, judge, loss))
        return float(below / count)

    def reindex(self) -> None:
        """Writes the terms of all entries anew."""
        self.words.clear()
        last = 0
        while rows := self._rows(
            "SELECT id, owner, text FROM memories WHERE id > ? ORDER BY id LIMIT ?", (last, _BATCH)
        ):
            last = rows[-1][0]
            terms = {number: Counter(terms_of(text)) for number, _, text in rows}
            statement = "UPDATE memories SET terms = ?, digest = ? WHERE id = ?"
            self._connection.many(statement, [(len(terms[number]), _digest(text), number) for number, _, text in rows])
            for owner in sorted({owner for _, owner, _ in rows}):
                self.words.put_all(owner, {number: terms[number] for number, whose, _ in rows if whose == owner})


def _row(entry: Entry, terms: int, loss: float | None = None, judge: str | None = None) -> Row:
    """An entry as the table `memories` has it."""
    fresh = max(entry.updated, entry.last_used or entry.updated)
    return (
        entry.user, entry.kind, entry.text, entry.source, entry.language, entry.created, entry.updated,
        entry.last_used, entry.uses, entry.seen, fresh, entry.expires, loss, judge, _digest(entry.text), terms,
    )  # fmt: skip


def _entry(row: Row) -> Entry:
    number, text, source, owner, kind, language, created, updated, last_used, uses, seen, expires = row
    return Entry(
        number, text, source, owner, cast("Kind", kind), language, created, updated, last_used, uses, seen, expires
    )


def _digest(text: str) -> str:
    """What texts have in common that differ by case, accents, spaces and the sign at the end."""
    return hashlib.sha256(plain(text).rstrip(" .!?。").encode()).hexdigest()[:32]


def _after(prefix: str) -> str:
    """The first text behind all that begin with a prefix, in the order of code points."""
    last = max(0xE000 if ord(prefix[-1]) == 0xD7FF else ord(prefix[-1]) + 1, 1)
    return prefix[:-1] + chr(min(last, 0x10FFFF))
