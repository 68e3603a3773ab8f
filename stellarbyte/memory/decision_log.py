"""The log of what a store's gate has decided, and of what has happened to entries."""

import json
from typing import Any, cast

from stellarbyte.memory.connection import Connection, Row, marks
from stellarbyte.memory.entries import Decision, Outcome

_DECISION = "outcome, reason, scores, memory, text, time, owner, source"


class DecisionLog:
    """The table `decisions`; each method is a part of a transaction that the caller has begun."""

    def __init__(self, connection: Connection) -> None:
        self._rows, self._run = connection.rows, connection.run

    def write(self, decision: Decision, most: int) -> None:
        """Writes a decision, and removes the oldest where there are more than `most`."""
        self._run(
            f"INSERT INTO decisions ({_DECISION}) VALUES ({marks(range(8))})",
            (
                decision.outcome, decision.reason, json.dumps(dict(decision.scores)), decision.entry, decision.text,
                decision.time, decision.user, decision.source,
            ),
        )  # fmt: skip
        self._run("DELETE FROM decisions WHERE id <= (SELECT MAX(id) FROM decisions) - ?", (most,))

    def read(self, owner: str, *, limit: int, outcome: str | None, entry: int | None) -> list[Decision]:
        """A user's decisions, the newest first."""
        where = "owner = ?"
        parameters: list[Any] = [owner]
        for name, value in (("outcome", outcome), ("memory", entry)):
            if value is not None:
                where, parameters = f"{where} AND {name} = ?", [*parameters, value]
        rows = self._rows(
            f"SELECT {_DECISION} FROM decisions WHERE {where} ORDER BY id DESC LIMIT ?", [*parameters, limit]
        )
        return [_decision(row) for row in rows]


def _decision(row: Row) -> Decision:
    outcome, reason, scores, memory, text, time, owner, source = row
    return Decision(cast("Outcome", outcome), reason, json.loads(scores), memory, text, time, owner, source)
