"""Keeps RUN/divergence.jsonl: a record of each step that was not applied, with the samples of its batch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stellarbyte.files import written_whole
from stellarbyte.metrics_file import records


class DivergenceLog:
    """The records of a run's steps that were not applied, one a line, in the order in which they were met.

    A run that goes on from before such a step meets it again: a record that is there already is not added again. So an
    interrupted run has the same file as one that was never interrupted. Only one process may add records.

    Raises:
        UserError: from `add`, if the file cannot be read or written.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.path = Path(run_dir) / "divergence.jsonl"

    def add(self, record: Mapping[str, Any]) -> int:
        """Adds a record, unless there is one that differs in its last checkpoint alone; returns how many there are."""
        known = list(records(self.path))
        if any(_without_checkpoint(other) == _without_checkpoint(record) for _, other in known):
            return len(known)
        with written_whole(self.path) as file:
            file.writelines(f"{line}\n" for line in (*(line for line, _ in known), json.dumps(record)))
        return len(known) + 1


def _without_checkpoint(record: Mapping[str, Any]) -> dict[str, Any]:
    # Interruptions save more checkpoints, so it may be another one.
    return {name: value for name, value in record.items() if name != "checkpoint"}
