"""What the techniques of training cost a step: all of them on against all of them off, taking turns.

Run it as `python -m tests.techniques_table CONFIG.yaml`, whose data are prepared.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

STEPS, COLD_STEPS = 48, 8
# In both, as only a learnt zeta can be regularised.
BOTH = ["--model.position_embedding=xpos", "--model.xpos_learnable=true", f"--training.max_steps={STEPS}"]
BOTH += ["--training.eval_batches=1", "--optimizer.warmup_steps=1"]
ON = {
    "label smoothing": ["--training.label_smoothing_factor=0.1"],
    "z-loss": ["--training.z_loss_coef=1e-4"],
    "EMA": ["--training.ema_decay=0.999"],
    "skipping what is not finite, and spikes": ["--training.on_not_finite=skip", "--training.loss_spike_zscore=6"],
    "position shift": ["--training.position_shift=16"],
    "XPos regularisation": ["--training.xpos_regularization_coef=0.01"],
    "norms by group": ["--training.log_norms=true"],
    "ledger": ["--data.ledger=true"],
}


def main() -> None:
    """Print the median seconds of a step with all of them off, with all on, and by choice with each by itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--each", action="store_true", help="each technique by itself, too")
    options = parser.parse_args()
    sides = {"all off": [], "all on": [option for given in ON.values() for option in given]}
    sides |= ON if options.each else {}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, given in sides.items():
            seconds[name] += _steps(options.config, given)
    print("| side | median, s | against off |\n| --- | --- | --- |")
    off = statistics.median(seconds["all off"])
    for name, found in seconds.items():
        median = statistics.median(found)
        print(f"| {name} | {median:.4f} | {median / off - 1:+.1%} |")


def _steps(config: str, given: list[str]) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "stellarbyte", "pretrain", config, *BOTH, *given, f"--output_dir={run}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["step_seconds"] for line in lines if line.get("step_seconds") and line["step"] > COLD_STEPS]


if __name__ == "__main__":
    main()
