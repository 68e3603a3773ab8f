"""Deletes entries for a reason that the log keeps; each function is a part of a transaction that writes."""

import time

from stellarbyte.memory.entries import Decision, Outcome
from stellarbyte.memory.settings import MemorySettings
from stellarbyte.memory.tables import Alive, Tables


def remove(
    tables: Tables, number: int, owner: str, outcome: Outcome, reason: str, settings: MemorySettings, now: float
) -> None:
    """Deletes an entry with all that was derived from it."""
    tables.delete([number])
    tables.decisions.write(Decision(outcome, reason, {}, number, None, now, owner), settings.log_entries)


def purge(tables: Tables, settings: MemorySettings, alive: Alive) -> int:
    """Deletes what has expired, of all users; returns how many entries that were."""
    expired = tables.expired(alive)
    for number, owner in expired:
        remove(tables, number, owner, "expired", "its time was over", settings, alive.now)
    return len(expired)


def alive_by(settings: MemorySettings) -> Alive:
    """What entries must outlive at this moment."""
    now, days = time.time(), settings.retention_days
    return Alive(now, -1.0 if days is None else now - 86_400 * days)
