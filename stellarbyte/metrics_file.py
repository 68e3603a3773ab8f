"""What a line of a run's metrics.jsonl holds, whoever has written it."""

import json
from typing import Any


def record_of(line: str) -> dict[str, Any] | None:
    """The line's record; None where it is none: cut off when a run was killed, or not written by a run."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if isinstance(step, int) and not isinstance(step, bool) else None
