"""The tables `vectors` and `changes` of a store: what is written of vectors, and which entries have none yet."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

from stellarbyte.memory.connection import Connection


class Reached(NamedTuple):
    """How far a store goes: changes are counted anew in each epoch."""

    epoch: str
    entry: int
    change: int


class VectorTable:
    """The tables `vectors` and `changes`; each method is a part of a transaction that the caller has begun."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows, self._run = connection.rows, connection.run

    def reached(self, owner: str) -> Reached:
        """How far a user's entries and the list of changes go at this moment."""
        ((epoch, newest, change),) = self._rows(
            "SELECT (SELECT value FROM meta WHERE key = 'epoch'), "
            "(SELECT MAX(id) FROM memories WHERE owner = ?), (SELECT MAX(id) FROM changes)",
            (owner,),
        )
        return Reached(epoch, newest or 0, change or 0)

    def is_complete(self, owner: str) -> bool:
        """Whether all of a user's entries have one; that is told by their numbers, without a look at each."""
        counts = "(SELECT COUNT(*) FROM vectors WHERE owner = ?), (SELECT entries FROM totals WHERE owner = ?)"
        ((vectors, entries),) = self._rows(f"SELECT {counts}", (owner, owner))
        return bool(vectors >= (entries or 0))

    def missing(self, owner: str, after: int, limit: int, since: Reached | None = None) -> list[tuple[int, str]]:
        """The ids and texts of a user's entries that have no vector yet, by id.

        after: the id to go on from.
        since: when all of them had one; of a large store only what was written after that is looked at. None: all.
        """
        parameters: list[Any] = [owner, max(after, since.entry if since else 0)]
        bare = "SELECT id, text FROM memories WHERE owner = ? AND NOT EXISTS (SELECT 1 FROM vectors WHERE memory = id)"
        statement = f"{bare} AND id > ?"
        if since:
            statement += f" UNION {bare} AND id > ? AND id IN (SELECT memory FROM changes WHERE id > ?)"
            parameters += [owner, after, since.change]
        return cast("list[tuple[int, str]]", self._rows(f"{statement} ORDER BY id LIMIT ?", [*parameters, limit]))

    def write(self, owner: str, vectors: Iterable[tuple[int, Any]]) -> None:
        """Writes vectors of entries, which the connection's database takes as they are."""
        rows = [(number, owner, vector) for number, vector in vectors]
        upsert = "INSERT INTO vectors (memory, owner, vector) VALUES (?, ?, ?)"
        self._connection.many(f"{upsert} ON CONFLICT (memory) DO UPDATE SET vector = excluded.vector", rows)
        self._changed([number for number, _, _ in rows])

    def write_new(self, owner: str, vectors: Iterable[tuple[int, Any]]) -> None:
        """Writes vectors of many entries that have none."""
        rows = [(number, owner, vector) for number, vector in vectors]
        self._connection.bulk("vectors", "memory, owner, vector", rows)
        self._connection.bulk("changes", "memory", [(number,) for number, _, _ in rows])

    def delete(self, ids: Sequence[int]) -> None:
        """Deletes the vectors of entries."""
        condition, values = self._connection.among("memory", ids)
        self._run(f"DELETE FROM vectors WHERE {condition}", values)
        self._changed(ids)

    def forget(self, owner: str) -> None:
        """Deletes all vectors of a user."""
        self._run("INSERT INTO changes (memory) SELECT memory FROM vectors WHERE owner = ?", (owner,))
        self._run("DELETE FROM vectors WHERE owner = ?", (owner,))

    def clear(self) -> None:
        """Deletes all vectors of all users; other processes read theirs anew."""
        self._run("DELETE FROM vectors")
        self._run("UPDATE totals SET vector_weight = NULL")
        self.next_epoch()

    def next_epoch(self) -> None:
        """Empties the list of changes; other processes read all vectors anew."""
        self._run("DELETE FROM changes")
        self._run("UPDATE meta SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT) WHERE key = 'epoch'")

    def _changed(self, ids: Iterable[int]) -> None:
        self._connection.many("INSERT INTO changes (memory) VALUES (?)", [(number,) for number in ids])
