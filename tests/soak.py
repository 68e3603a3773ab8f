"""Watches the memory, threads and open files of a long run with frequent checkpoints and validations.

Run it as `python -m tests.soak`; 10,000 steps take a few minutes. Linux only, where /proc has these figures.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.torture import last_record, make_config

SAVE_STEPS, EVAL_STEPS = 50, 100
NAMES = ("resident_mb", "threads", "open_files")


def main() -> int:
    """Print the figures at each tenth of the run, and how they went on after the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000, help="number of steps (default 10,000)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(Path(folder))
        rows = watch(config, options.steps, overrides)
    growth = {name: rows[-1][name] - rows[0][name] for name in NAMES}
    if options.json:
        print(json.dumps({"rows": rows, "growth": growth}))
        return 0
    print(f"A checkpoint every {SAVE_STEPS} steps and a validation every {EVAL_STEPS}.\n")
    print("| step | resident MB | threads | open files |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['step']} | {row['resident_mb']:.0f} | {row['threads']} | {row['open_files']} |")
    print(f"\nFrom the first row to the last: {growth['resident_mb']:+.0f} MB, {growth['threads']:+} threads, ", end="")
    print(f"{growth['open_files']:+} open files.")
    return 0


def watch(config: Path, steps: int, overrides: list[str]) -> list[dict[str, float]]:
    """The figures of the process when it has done each tenth of its steps."""
    fields = {"training.max_steps": steps, "training.eval_steps": EVAL_STEPS, "checkpoint.save_steps": SAVE_STEPS}
    command = [sys.executable, "-m", "stellarbyte", "pretrain", str(config)]
    command += [f"--{name}={value}" for name, value in fields.items()] + overrides
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    run, rows = config.with_name("run"), []
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        for tenth in range(1, 11):
            while process.poll() is None and last_record(run) < tenth * steps // 10 - SAVE_STEPS // 2:
                time.sleep(0.05)
            if process.poll() is None:
                rows.append({"step": last_record(run), **_figures(process.pid)})
                print(rows[-1], file=sys.stderr, flush=True)
    assert process.returncode == 0 and len(rows) == 10, (process.returncode, rows)
    return rows


def _figures(pid: int) -> dict[str, float]:
    """The least of twenty looks within a second: a save opens files and threads for a moment."""
    looks = []
    for _ in range(20):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        values = dict(line.split(":", 1) for line in status.splitlines())
        open_files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        looks.append((int(values["VmRSS"].split()[0]) / 1024, int(values["Threads"]), open_files))
        time.sleep(0.05)
    return {name: min(column) for name, column in zip(NAMES, zip(*looks, strict=True), strict=True)}


if __name__ == "__main__":
    sys.exit(main())
