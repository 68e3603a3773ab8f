"""The index of a store's terms: which entries have them, and which of these BM25 puts first."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from stellarbyte.memory.connection import Connection, chunks, marks
from stellarbyte.memory.words import terms_of


class Trust(NamedTuple):
    """How far a store's vectors can be trusted, as weighing.py measures it; the values here are for an unmeasured one.

    Attributes:
        weight: the mean reciprocal place at which they find an entry by half of its text, 0 where its cosine is no
            higher than those of questions on anything; from 0 to 1.
        usual, spread: mean and standard deviation of the cosine that the nearest entry has to a question on anything.
    """

    weight: float = 0.5
    usual: float = 0.3
    spread: float = 0.1


def bm25(count: int, length: int, mean_length: float) -> float:
    """What a term's weight is multiplied by (Robertson and Zaragoza, 2009, with k1 = 1.2 and b = 0.75)."""
    return count * 2.2 / (count + 0.3 + 0.9 * length / mean_length)


class WordIndex:
    """The tables `words` and `totals`; each method is a part of a transaction that the caller has begun."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows = connection.rows

    def owners(self) -> list[str]:
        """All users of the store."""
        return [owner for (owner,) in self._rows("SELECT owner FROM totals ORDER BY owner")]

    def totals(self, owner: str) -> tuple[int, int]:
        """How many entries a user has, and how many terms these have in all."""
        rows = self._rows("SELECT entries, length FROM totals WHERE owner = ?", (owner,))
        return (rows[0][0], rows[0][1]) if rows else (0, 0)

    def trust(self, owner: str) -> tuple[Trust, int] | None:
        """How far a user's vectors can be trusted, and for how many entries that was measured; None: not yet."""
        rows = self._rows(
            "SELECT vector_weight, usual_cosine, cosine_spread, weighed FROM totals WHERE owner = ?", (owner,)
        )
        return (Trust(*rows[0][:3]), rows[0][3]) if rows and rows[0][0] is not None else None

    def set_trust(self, owner: str, trust: Trust, entries: int) -> None:
        """Keeps how far a user's vectors can be trusted."""
        statement = (
            "UPDATE totals SET vector_weight = ?, usual_cosine = ?, cosine_spread = ?, weighed = ? WHERE owner = ?"
        )
        self._rows(statement, (*trust, entries, owner))

    def frequencies(self, owner: str, terms: Sequence[str]) -> dict[str, int]:
        """In how many of a user's entries each term stands; terms that are nowhere are left out."""
        found: dict[str, int] = {}
        for some in chunks(terms):
            statement = f"SELECT term, COUNT(*) FROM words WHERE owner = ? AND term IN ({marks(some)}) GROUP BY term"
            found.update(cast("list[tuple[str, int]]", self._rows(statement, [owner, *some])))
        return found

    def ranked(
        self, owner: str, weights: Mapping[str, tuple[float, float]], mean_length: float, limit: int
    ) -> list[tuple[int, float, float]]:
        """The ids that BM25 puts first, their scores, and the sums of the second weights of the terms in them."""
        values = ", ".join(
            ["(CAST(? AS TEXT), CAST(? AS DOUBLE PRECISION), CAST(? AS DOUBLE PRECISION))"] * len(weights)
        )
        # As `bm25` computes it. In SQLite CROSS JOIN keeps the order of the tables.
        statement = (
            f"WITH asked (term, weight, share) AS (VALUES {values}) "
            "SELECT w.memory, SUM(a.weight * w.count * 2.2 / (w.count + 0.3 + 0.9 * w.length / ?)) AS score, "
            "SUM(a.share) FROM asked a CROSS JOIN words w WHERE w.owner = ? AND w.term = a.term "
            "GROUP BY w.memory ORDER BY score DESC, w.memory LIMIT ?"
        )
        flat = [value for term, pair in weights.items() for value in (term, *pair)]
        return cast("list[tuple[int, float, float]]", self._rows(statement, [*flat, mean_length, owner, limit]))

    def matched(self, owner: str, terms: Sequence[str], ids: Sequence[int]) -> list[tuple[int, str, int, int]]:
        """The ids of entries, each with a term that it has, how often, and the number of all its terms."""
        found: list[tuple[int, str, int, int]] = []
        for term in terms:
            for some in chunks(ids):
                statement = "SELECT memory, term, count, length FROM words WHERE owner = ? AND term = ? AND memory IN"
                rows = self._rows(f"{statement} ({marks(some)})", [owner, term, *some])
                found += cast("list[tuple[int, str, int, int]]", rows)
        return found

    def clear(self) -> None:
        """Removes all terms of all users."""
        self._rows("DELETE FROM words")
        self._rows("DELETE FROM totals")

    def put(self, number: int, owner: str, terms: Mapping[str, int]) -> None:
        """Adds the terms of an entry that has none here."""
        length = sum(terms.values())
        rows = [(owner, term, number, count, length) for term, count in sorted(terms.items())]
        self._connection.many("INSERT INTO words VALUES (?, ?, ?, ?, ?)", rows)
        self._total(owner, 1, length)

    def remove(self, ids: Sequence[int]) -> None:
        """Removes the terms of entries, and the entries from their users' totals."""
        for some in chunks(ids):
            statement = f"SELECT id, owner, text, terms FROM memories WHERE id IN ({marks(some)})"
            for number, owner, text, known in self._rows(statement, some):
                terms = Counter(terms_of(text))
                key = "FROM words WHERE owner = ? AND term = ? AND memory = ?"
                self._connection.many(f"DELETE {key}", [(owner, term, number) for term in terms])
                if len(terms) != known:  # another Python's Unicode has cut it otherwise: look at each row
                    self._rows("DELETE FROM words WHERE owner = ? AND memory = ?", (owner, number))
                self._total(owner, -1, -sum(terms.values()))

    def _total(self, owner: str, entries: int, length: int) -> None:
        self._rows(
            "INSERT INTO totals (owner, entries, length) VALUES (?, ?, ?) ON CONFLICT (owner) DO UPDATE SET "
            "entries = totals.entries + excluded.entries, length = totals.length + excluded.length",
            (owner, entries, length),
        )
