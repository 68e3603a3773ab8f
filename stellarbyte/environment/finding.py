"""What a check of the doctor comes to."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["well", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    check: the name of the check. level: whether all is well, there is something to know, or something is wrong.
    words: a sentence without its full stop. mend: the command, or the step, that mends it; empty where there is none.
    """

    check: str
    level: Level
    words: str
    mend: str = ""

    def to_dict(self) -> Mapping[str, Any]:
        """Its fields, ready for JSON."""
        return asdict(self)


def well(check: str, words: str) -> list[Finding]:
    """A check that has found nothing."""
    return [Finding(check, "well", words)]
