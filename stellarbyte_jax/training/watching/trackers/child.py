"""A tracker's own process: it reads a run and then its records, one JSON object a line, from stdin until that ends."""

import json
import os
import sys
import threading
from importlib import import_module
from pathlib import Path

from stellarbyte_jax.training.watching.trackers.tracker import TrackedRun, Tracker

# Seconds that a tracker gets to send the rest once the run has ended. It does not keep the run waiting for so long.
_LONGEST_GOODBYE = 600.0


def main(name: str) -> None:
    """Opens the tracker of this name and feeds it; ends with an error as soon as the tracker fails."""
    first = json.loads(sys.stdin.readline())
    tracker: Tracker = import_module(f"{__package__}.{name}_tracker").open_tracker(
        TrackedRun(**first | {"run_dir": Path(first["run_dir"])})
    )
    for line in sys.stdin:
        if not line.endswith("\n"):
            break  # the run was killed while it wrote
        record = json.loads(line)
        tracker.log(record["step"], record["figures"])
    last = threading.Timer(_LONGEST_GOODBYE, os._exit, [1])
    last.daemon = True
    last.start()
    tracker.close()


if __name__ == "__main__":
    main(sys.argv[1])
