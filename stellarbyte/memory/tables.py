"""Reads and writes the tables of a store; each method is a part of a transaction that the caller has begun."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from stellarbyte.memory.connection import Connection, Row, chunks, marks
from stellarbyte.memory.decision_log import DecisionLog
from stellarbyte.memory.entries import Entry, Kind
from stellarbyte.memory.word_index import WordIndex
from stellarbyte.memory.words import language_of, plain, terms_of

_ENTRY = "id, text, source, owner, kind, language, created, updated, last_used, uses, seen, expires"


class Alive(NamedTuple):
    """What entries must outlive: the present time, and the time after which they were last said or used."""

    now: float
    fresh_after: float


class Reached(NamedTuple):
    """How far a store goes: changes are counted anew in each epoch."""

    epoch: str
    entry: int
    change: int


class Tables:
    """The tables behind a connection.

    Attributes:
        words: the index of terms.
        decisions: the log.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows = connection.rows
        self.words = WordIndex(connection)
        self.decisions = DecisionLog(connection)

    def meta(self) -> dict[str, str]:
        """What the store says of itself."""
        return dict(self._rows("SELECT key, value FROM meta"))

    def set_meta(self, key: str, value: str) -> None:
        """Writes one such line."""
        upsert = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        self._rows(upsert, (key, value))

    def entries(self, ids: Sequence[int], alive: Alive) -> dict[int, Entry]:
        """The entries with these ids, as far as there are such."""
        found: dict[int, Entry] = {}
        where = "(expires IS NULL OR expires > ?) AND fresh > ?"
        for some in chunks(ids):
            statement = f"SELECT {_ENTRY} FROM memories WHERE {where} AND id IN ({marks(some)})"
            found.update((row[0], _entry(row)) for row in self._rows(statement, [*alive, *some]))
        return found

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
        rows = self._rows("SELECT MIN(id), MAX(id) FROM memories WHERE owner = ?", (owner,))
        first, last = rows[0]
        if first is None:
            return []
        found: dict[int, Entry] = {}
        for place in range(count):
            least = first + (last - first + 1) * place // count
            statement = f"SELECT {_ENTRY} FROM memories WHERE owner = ? AND id >= ? ORDER BY id LIMIT 1"
            found.update((row[0], _entry(row)) for row in self._rows(statement, (owner, least)))
        return list(found.values())

    def same_text(self, owner: str, text: str) -> int | None:
        """The entry that has this text, but for case, accents and spaces."""
        rows = self._rows("SELECT id FROM memories WHERE owner = ? AND digest = ?", (owner, _digest(text)))
        return rows[0][0] if rows else None

    def insert(self, entry: Entry, loss: float | None = None, judge: str | None = None) -> int:
        """Writes an entry, whose own id is not used; returns its id."""
        terms = Counter(terms_of(entry.text))
        fresh = max(entry.updated, entry.last_used or entry.updated)
        ((number,),) = self._rows(
            "INSERT INTO memories (owner, kind, text, source, language, created, updated, last_used, uses, seen, "
            f"fresh, expires, loss, judge, digest, terms) VALUES ({marks(range(16))}) RETURNING id",
            (
                entry.user, entry.kind, entry.text, entry.source, entry.language, entry.created, entry.updated,
                entry.last_used, entry.uses, entry.seen, fresh, entry.expires, loss, judge, _digest(entry.text),
                len(terms),
            ),
        )  # fmt: skip
        self.words.put(number, entry.user, terms)
        return int(number)

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
        self._rows(
            "UPDATE memories SET text = ?, source = ?, language = ?, updated = ?, fresh = ?, loss = ?, judge = ?, "
            "digest = ?, terms = ? WHERE id = ?",
            (text, source, language_of(text), now, now, loss, judge, _digest(text), len(terms), entry.id),
        )
        self.words.put(entry.id, entry.user, terms)
        self._rows("DELETE FROM vectors WHERE memory = ?", (entry.id,))
        self._changed([entry.id])

    def used(self, ids: Sequence[int], now: float) -> None:
        """Counts a use of entries."""
        for some in chunks(ids):
            statement = "UPDATE memories SET uses = uses + 1, last_used = ?, fresh = ? WHERE id IN"
            self._rows(f"{statement} ({marks(some)})", [now, now, *some])

    def said_again(self, number: int, now: float) -> None:
        """Counts that an entry was said once more."""
        self._rows("UPDATE memories SET seen = seen + 1, fresh = ? WHERE id = ?", (now, number))

    def delete(self, ids: Sequence[int]) -> None:
        """Deletes entries with all that was derived from them: terms, vectors, history, and texts in the log."""
        self.words.remove(ids)
        for some in chunks(ids):
            for statement in (
                "DELETE FROM vectors WHERE memory IN",
                "DELETE FROM history WHERE memory IN",
                "DELETE FROM frames WHERE memory IN",
                "UPDATE decisions SET text = NULL, source = '' WHERE memory IN",
                "DELETE FROM memories WHERE id IN",
            ):
                self._rows(f"{statement} ({marks(some)})", some)
        self._changed(ids)

    def forget(self, owner: str) -> int:
        """Deletes all of a user, the log too; returns the number of entries."""
        entries, _ = self.words.totals(owner)
        inside = "memory IN (SELECT id FROM memories WHERE owner = ?)"
        self._rows("INSERT INTO changes (memory) SELECT memory FROM vectors WHERE owner = ?", (owner,))
        self._rows(f"DELETE FROM history WHERE {inside}", (owner,))
        for table in ("memories", "words", "frames", "vectors", "totals", "decisions"):
            self._rows(f"DELETE FROM {table} WHERE owner = ?", (owner,))
        return entries

    def add_history(self, number: int, texts: Sequence[Mapping[str, Any]]) -> None:
        """Adds texts that an entry had, from the oldest."""
        statement = "INSERT INTO history (memory, text, source, since, until, reason) VALUES (?, ?, ?, ?, ?, ?)"
        rows = [(number, *(old[name] for name in ("text", "source", "since", "until", "reason"))) for old in texts]
        self._connection.many(statement, rows)

    def history(self, number: int) -> list[dict[str, Any]]:
        """The texts that an entry had, from the oldest."""
        names = "text, source, since, until, reason"
        rows = self._rows(f"SELECT {names} FROM history WHERE memory = ? ORDER BY id", (number,))
        return [dict(zip(names.split(", "), row, strict=True)) for row in rows]

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
        self._rows("DELETE FROM frames WHERE memory = ?", (number,))
        self._connection.many("INSERT INTO frames VALUES (?, ?, ?)", [(owner, frame, number) for frame in frames])

    def of_frames(self, owner: str, frames: Sequence[str]) -> list[int]:
        """A user's entries that have one of these frames, the newest first."""
        found: set[int] = set()
        for some in chunks(frames):
            statement = f"SELECT memory FROM frames WHERE owner = ? AND frame IN ({marks(some)})"
            found.update(number for (number,) in self._rows(statement, [owner, *some]))
        return sorted(found, reverse=True)

    def share_below(self, owner: str, judge: str, loss: float, least: int) -> float | None:
        """The share of a user's entries that surprised a judge less than `loss`; None: fewer than `least` did."""
        where = "FROM memories WHERE owner = ? AND judge = ? AND loss IS NOT NULL"
        ((count,),) = self._rows(f"SELECT COUNT(*) {where}", (owner, judge))
        if count < least:
            return None
        ((below,),) = self._rows(f"SELECT COUNT(*) {where} AND loss < ?", (owner, judge, loss))
        return float(below / count)

    def reached(self, owner: str) -> Reached:
        """How far a user's entries and the list of changes go at this moment."""
        ((epoch,),) = self._rows("SELECT value FROM meta WHERE key = 'epoch'")
        ((newest,),) = self._rows("SELECT COALESCE(MAX(id), 0) FROM memories WHERE owner = ?", (owner,))
        ((change,),) = self._rows("SELECT COALESCE(MAX(id), 0) FROM changes")
        return Reached(epoch, newest, change)

    def without_vector(self, owner: str, limit: int, since: Reached | None = None) -> list[tuple[int, str]]:
        """The ids and texts of a user's entries that have no vector yet.

        since: when all of them had one; of a large store only what was written after that is looked at. None: all.
        """
        parameters: list[Any] = [owner, since.entry if since else 0]
        bare = "SELECT id, text FROM memories WHERE owner = ? AND NOT EXISTS (SELECT 1 FROM vectors WHERE memory = id)"
        statement = f"{bare} AND id > ?"
        if since:
            statement += f" UNION {bare} AND id IN (SELECT memory FROM changes WHERE id > ?)"
            parameters += [owner, since.change]
        return cast("list[tuple[int, str]]", self._rows(f"{statement} ORDER BY id LIMIT ?", [*parameters, limit]))

    def set_vectors(self, owner: str, vectors: Iterable[tuple[int, Any]]) -> None:
        """Writes vectors of entries, which the connection's database takes as they are."""
        rows = [(number, owner, vector) for number, vector in vectors]
        upsert = "INSERT INTO vectors VALUES (?, ?, ?) ON CONFLICT (memory) DO UPDATE SET vector = excluded.vector"
        self._connection.many(upsert, rows)
        self._changed([number for number, _, _ in rows])

    def forget_vectors(self) -> None:
        """Deletes all vectors of all users; other processes read theirs anew."""
        self._rows("DELETE FROM vectors")
        self._rows("UPDATE totals SET vector_weight = NULL")
        self.next_epoch()

    def next_epoch(self) -> None:
        """Empties the list of changes; other processes read all vectors anew."""
        self._rows("DELETE FROM changes")
        ((epoch,),) = self._rows("SELECT value FROM meta WHERE key = 'epoch'")
        self.set_meta("epoch", str(int(epoch) + 1))

    def reindex(self) -> None:
        """Writes the terms of all entries anew."""
        self.words.clear()
        for number, owner, text in self._rows("SELECT id, owner, text FROM memories ORDER BY id"):
            terms = Counter(terms_of(text))
            statement = "UPDATE memories SET terms = ?, digest = ? WHERE id = ?"
            self._rows(statement, (len(terms), _digest(text), number))
            self.words.put(number, owner, terms)

    def _changed(self, ids: Iterable[int]) -> None:
        self._connection.many("INSERT INTO changes (memory) VALUES (?)", [(number,) for number in ids])


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
