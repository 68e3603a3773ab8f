"""The index of a store's terms: which entries have them, and which of these BM25 puts first."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from stellarbyte.memory.connection import Connection
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


class Measured(NamedTuple):
    """What is known of a user's entries as a whole.

    Attributes:
        entries: their number.
        length: that of their terms.
        trust: how far their vectors can be trusted; None: it was never measured.
        weighed: the number of entries when that was measured.
    """

    entries: int = 0
    length: int = 0
    trust: Trust | None = None
    weighed: int = 0


_COLUMNS = "owner, term, memory, count, length"
# What a term's weight is multiplied by (Robertson and Zaragoza, 2009, with k1 = 1.2 and b = 0.75); ? is the mean of
# the lengths. In this order PostgreSQL computes in floating point; decimals take it three times as long.
_BM25 = "w.count * 2.2 / (w.length / ? * 0.9 + 0.3 + w.count)"
_SUMS = f"w.memory, SUM(a.weight * {_BM25}) AS score, SUM(a.share)"


class WordIndex:
    """The tables `words`, `terms` and `totals`; each method is a part of a transaction that the caller has begun."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows, self._run = connection.rows, connection.run

    def owners(self) -> list[str]:
        """All users of the store."""
        return [owner for (owner,) in self._rows("SELECT owner FROM totals ORDER BY owner")]

    def totals(self, owner: str) -> tuple[int, int]:
        """How many entries a user has, and how many terms these have in all."""
        return self.measured(owner)[:2]

    def measured(self, owner: str) -> Measured:
        """What is known of a user's entries as a whole."""
        rows = self._rows(
            "SELECT entries, length, vector_weight, usual_cosine, cosine_spread, weighed FROM totals WHERE owner = ?",
            (owner,),
        )
        if not rows:
            return Measured()
        entries, length, *trust, weighed = rows[0]
        return Measured(entries, length, None if trust[0] is None else Trust(*trust), weighed or 0)

    def set_trust(self, owner: str, trust: Trust, entries: int) -> None:
        """Keeps how far a user's vectors can be trusted."""
        statement = (
            "UPDATE totals SET vector_weight = ?, usual_cosine = ?, cosine_spread = ?, weighed = ? WHERE owner = ?"
        )
        self._run(statement, (*trust, entries, owner))

    def frequencies(self, owner: str, terms: Sequence[str]) -> dict[str, int]:
        """In how many of a user's entries each term stands; terms that are nowhere are left out."""
        condition, values = self._connection.among("term", terms)
        rows = self._rows(f"SELECT term, entries FROM terms WHERE owner = ? AND {condition}", [owner, *values])
        return cast("dict[str, int]", dict(rows))

    def ranked(
        self, owner: str, weights: Mapping[str, tuple[float, float]], mean_length: float, limit: int
    ) -> list[tuple[int, float, float]]:
        """The ids that BM25 puts first, their scores, and the sums of the second weights of the terms in them."""
        asked, values = _asked(weights)
        # In SQLite CROSS JOIN keeps the order of the tables.
        statement = (
            f"{asked} SELECT {_SUMS} FROM asked a CROSS JOIN words w WHERE w.owner = ? AND w.term = a.term "
            "GROUP BY w.memory ORDER BY score DESC, w.memory LIMIT ?"
        )
        rows = self._rows(statement, [*values, mean_length, owner, limit])
        return cast("list[tuple[int, float, float]]", rows)

    def scores(
        self, owner: str, weights: Mapping[str, tuple[float, float]], mean_length: float, ids: Sequence[int]
    ) -> list[tuple[int, float, float]]:
        """The same of these ids, in no order; those that have none of the terms are left out."""
        asked, values = _asked(weights)
        each, numbers = self._connection.each(ids)
        words = self._connection.looked_up("words", "w.owner = ? AND w.term = a.term AND w.memory = i.value")
        statement = f"{asked} SELECT {_SUMS} FROM {each} CROSS JOIN asked a {words} GROUP BY w.memory"
        rows = self._rows(statement, [*values, mean_length, *numbers, owner])
        return cast("list[tuple[int, float, float]]", rows)

    def clear(self) -> None:
        """Removes all terms of all users; how far vectors can be trusted is measured anew after that."""
        for table in ("words", "terms", "totals"):
            self._run(f"DELETE FROM {table}")

    def put(self, number: int, owner: str, terms: Mapping[str, int]) -> None:
        """Adds the terms of an entry that has none here."""
        self._connection.many(f"INSERT INTO words ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)", _rows(owner, number, terms))
        self._count(owner, dict.fromkeys(terms, 1), 1, sum(terms.values()))

    def put_all(self, owner: str, entries: Mapping[int, Mapping[str, int]]) -> None:
        """Adds the terms of many entries of a user."""
        rows = sorted(row for number, terms in entries.items() for row in _rows(owner, number, terms))
        self._connection.bulk("words", _COLUMNS, rows)
        counts = Counter(term for terms in entries.values() for term in terms)
        self._count(owner, counts, len(entries), sum(sum(terms.values()) for terms in entries.values()))

    def remove(self, ids: Sequence[int]) -> None:
        """Removes the terms of entries, and the entries from their users' totals."""
        condition, values = self._connection.among("id", ids)
        for number, owner, text, known in self._rows(
            f"SELECT id, owner, text, terms FROM memories WHERE {condition}", values
        ):
            terms = Counter(terms_of(text))
            if len(terms) != known:  # another Python's Unicode has cut it otherwise: look at each row
                rows = self._rows("SELECT term, count FROM words WHERE owner = ? AND memory = ?", (owner, number))
                terms = Counter(dict(cast("list[tuple[str, int]]", rows)))
            key = "FROM words WHERE owner = ? AND term = ? AND memory = ?"
            self._connection.many(f"DELETE {key}", [(owner, term, number) for term in sorted(terms)])
            self._count(owner, dict.fromkeys(terms, -1), -1, -sum(terms.values()))

    def forget(self, owner: str) -> None:
        """Removes all terms of a user."""
        for table in ("words", "terms", "totals"):
            self._run(f"DELETE FROM {table} WHERE owner = ?", (owner,))

    def _count(self, owner: str, terms: Mapping[str, int], entries: int, length: int) -> None:
        """Adds to the numbers of entries that have terms, and to a user's totals; below 0: takes away."""
        changes = sorted(terms.items())
        if entries > 0:
            self._connection.many(
                "INSERT INTO terms (owner, term, entries) VALUES (?, ?, ?) ON CONFLICT (owner, term) DO UPDATE SET "
                "entries = terms.entries + excluded.entries",
                [(owner, term, number) for term, number in changes],
            )
        else:
            key = "WHERE owner = ? AND term = ?"
            numbers = [(number, owner, term) for term, number in changes]
            self._connection.many(f"UPDATE terms SET entries = entries + ? {key}", numbers)
            gone = [(owner, term) for term, _ in changes]
            self._connection.many(f"DELETE FROM terms {key} AND entries <= 0", gone)
        self._run(
            "INSERT INTO totals (owner, entries, length) VALUES (?, ?, ?) ON CONFLICT (owner) DO UPDATE SET "
            "entries = totals.entries + excluded.entries, length = totals.length + excluded.length",
            (owner, entries, length),
        )


def _asked(weights: Mapping[str, tuple[float, float]]) -> tuple[str, list[Any]]:
    """The table `asked` of terms and their two weights, and its parameters."""
    row = "(CAST(? AS TEXT), CAST(? AS DOUBLE PRECISION), CAST(? AS DOUBLE PRECISION))"
    values = [value for term, pair in weights.items() for value in (term, *pair)]
    return f"WITH asked (term, weight, share) AS (VALUES {', '.join([row] * len(weights))})", values


def _rows(owner: str, number: int, terms: Mapping[str, int]) -> list[tuple[str, str, int, int, int]]:
    """An entry's rows of `words`."""
    length = sum(terms.values())
    return [(owner, term, number, count, length) for term, count in sorted(terms.items())]
