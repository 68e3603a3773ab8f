"""RUN/amendments.jsonl: what was changed of a run's config while it went on, one line a change, for good."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from stellarbyte.errors import UserError, shown
from stellarbyte.files import written_whole
from stellarbyte.places import Place, place
from stellarbyte.reading import MIB, parse_json, read_text

AMENDMENTS = "amendments.jsonl"

# A line has some 10 kB; a run is amended by a person.
_MOST_BYTES = 256 * MIB
_MOST_COUNTED = 1 << 50


@dataclass(frozen=True)
class Amendment:
    """A change of a run's config, which holds for the steps after `step`.

    number: 1, 2, … in the order in which they were made.
    date: the UTC date and time, in ISO 8601.
    changes: field -> its value before and after.
    rows: the rows of the data that had been taken or left out until then.
    before, config: the whole configs.
    data: the identity of the data from here on, if it begins anew with this; then its rows are counted from 0.
    """

    number: int
    step: int
    date: str
    changes: Mapping[str, tuple[Any, Any]]
    rows: int
    before: Mapping[str, Any]
    config: Mapping[str, Any]
    data: Mapping[str, Any] | None = field(default=None)

    @property
    def told(self) -> str:
        """The changes, in words."""
        return ", ".join(f"{name} {was} -> {now}" for name, (was, now) in self.changes.items())

    def __str__(self) -> str:
        return f"after step {self.step} on {self.date[:10]}: {self.told}"


def read_amendments(run_dir: str | Place) -> tuple[Amendment, ...]:
    """The amendments of the run in a folder, in their order; none if it has no such file.

    Raises:
        UserError: the file cannot be read, or a line of it is no amendment.
    """
    path = place(run_dir) / AMENDMENTS
    if not path.exists():
        return ()
    return tuple(_amendment(line, f"{path}:{n}") for n, line in enumerate(_lines(path), 1))


def append_amendment(run_dir: str | Place, amendment: Amendment) -> None:
    """Adds a line to the run's file in one step, so that no line is ever lost or half written.

    Raises:
        UserError: the file cannot be read or written.
    """
    path = place(run_dir) / AMENDMENTS
    lines = _lines(path) if path.exists() else []
    with written_whole(path) as file:
        for line in [*lines, json.dumps(asdict(amendment))]:
            file.write(f"{line}\n")


def _lines(path: Place) -> list[str]:
    return read_text(path, _MOST_BYTES).splitlines()


_KINDS: dict[str, Any] = {
    **{"number": int, "step": int, "date": str, "changes": dict, "rows": int, "before": dict, "config": dict},
    "data": (dict, type(None)),
}


def _amendment(line: str, where: str) -> Amendment:
    fields = parse_json(line, where)
    if (
        not isinstance(fields, dict)
        or fields.keys() != _KINDS.keys()
        or not all(isinstance(fields[name], kind) for name, kind in _KINDS.items())
        or not all(0 <= fields[name] <= _MOST_COUNTED for name in ("number", "step", "rows"))
        or not all(isinstance(pair, list) and len(pair) == 2 for pair in fields["changes"].values())
    ):
        raise UserError(
            f"{where} is no amendment of a run: {shown(line)}; bring the file back as the run wrote it, or move it away"
        )
    changes = {name: (was, now) for name, (was, now) in fields.pop("changes").items()}
    return Amendment(**fields, changes=changes)
