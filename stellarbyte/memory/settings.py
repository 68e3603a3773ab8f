"""The settings of a store, which are kept in it so that all its processes agree."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from stellarbyte.errors import UserError, shown


@dataclass(frozen=True)
class MemorySettings:
    """What a store keeps, and how its gate and its search judge.

    Attributes:
        capacity: the most entries of a user; the least used goes first.
        retention_days: days after which an entry is deleted unless it was said or used again; None: never.
        duplicate: the similarity, from 0 to 1, from which on two texts say the same.
        surprise: the share, from 0 to 1, that a turn's surprise must have of the entries' median; 0: no such rule.
        floor: the score, from 0 to 1, below which a search leaves out what it has found.
        log_entries: the most decisions that the log keeps; the oldest go first.
    """

    capacity: int = 1_000_000
    retention_days: float | None = None
    duplicate: float = 0.9
    surprise: float = 0.1
    floor: float = 0.2
    log_entries: int = 100_000

    def __post_init__(self) -> None:
        for name in ("capacity", "log_entries"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UserError(f"{name} {shown(value)} must be an integer of at least 1")
        for name in ("duplicate", "surprise", "floor"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise UserError(f"{name} {shown(value)} must be a number from 0 to 1")
        days = self.retention_days
        if days is not None and (type(days) not in (int, float) or not 0 < days <= 36_500):
            raise UserError(f"retention_days {shown(days)} must be a number above 0 and at most 36500, or null")

    def to_json(self) -> str:
        """The settings as a store keeps them."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "MemorySettings":
        """The settings that a store has kept; a field that this version does not know is left out."""
        values: dict[str, Any] = json.loads(text)
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})
