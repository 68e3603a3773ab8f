"""`stellarbyte schedule` tells the rates that training will use, heeds overrides, and loads no JAX."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stellarbyte.door import main
from stellarbyte_jax.config_file import load_run_config
from stellarbyte_jax.training.schedules import learning_rate_schedule

ROOT = Path(__file__).parents[3]
QUICKSTART = str(ROOT / "configs" / "run" / "quickstart.yaml")
RESTARTS = ["--optimizer.lr_scheduler_type=cosine_with_restarts", "--optimizer.num_cycles=3"]

CapSys = pytest.CaptureFixture[str]


def test_the_table_tells_the_rates_of_training(capsys: CapSys) -> None:
    assert main(["schedule", QUICKSTART, "--training.max_steps", "100", *RESTARTS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    config = load_run_config(QUICKSTART)
    assert found["lr_scheduler_type"] == "cosine_with_restarts" and found["max_steps"] == 100
    assert [phase["name"] for phase in found["phases"]] == ["warm-up", *(f"cycle {n} of 3" for n in (1, 2, 3))]
    steps = [row["step"] for row in found["steps"]]
    edges = {phase[edge] for phase in found["phases"] for edge in ("first_step", "last_step")}
    assert edges <= set(steps) and steps == sorted(set(steps)) and 10 <= len(steps) <= 12
    overridden = load_run_config(QUICKSTART, ["--training.max_steps", "100", *RESTARTS]).optimizer
    rates = learning_rate_schedule(overridden, 100, np)(np.asarray(steps) - 1)
    np.testing.assert_allclose([row["learning_rate"] for row in found["steps"]], rates, rtol=1e-6)
    assert max(row["learning_rate"] for row in found["steps"]) == pytest.approx(config.optimizer.learning_rate)


def test_the_drawing_has_the_schedules_shape(capsys: CapSys) -> None:
    wsd = ["--optimizer.lr_scheduler_type=warmup_stable_decay", "--optimizer.min_learning_rate_ratio=0"]
    assert main(["schedule", QUICKSTART, "--training.max_steps=64", "--optimizer.warmup_steps=16", *wsd]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "warmup_stable_decay, 64 steps: warm-up 1-16, stable 17-52, decay 53-64"
    bars = [line[11:].ljust(64) for line in said[2:10]]
    heights = [sum(" ▁▂▃▄▅▆▇█".index(line[column]) for line in bars) for column in range(64)]
    assert heights[15:52] == [64] * 37 and heights[63] == 0
    assert heights[:16] == [4 * step for step in range(1, 17)]
    assert heights[51:] == sorted(heights[51:], reverse=True)
    assert said[10].split() == ["step", "1", "64"]
    assert said[12].split() == ["step", "learning", "rate", "phase"] and len(said[13:]) <= 12


@pytest.mark.parametrize("steps", [1, 2, 3, 10**9])
def test_of_any_length(steps: int, capsys: CapSys) -> None:
    assert main(["schedule", QUICKSTART, f"--training.max_steps={steps}", "--optimizer.warmup_steps=0"]) == 0
    said = capsys.readouterr().out
    assert f"cosine, {steps} steps: decay 1-{steps}\n" in said and max(map(len, said.splitlines())) <= 80


def test_many_cycles_leave_a_dozen_rows(capsys: CapSys) -> None:
    many = [*RESTARTS[:1], "--optimizer.num_cycles=40", "--training.max_steps=500", "--json"]
    assert main(["schedule", QUICKSTART, *many]) == 0
    assert len(json.loads(capsys.readouterr().out)["steps"]) == 12


def test_it_needs_no_jax() -> None:
    program = f"from stellarbyte.door import main; import sys; main(['schedule', {QUICKSTART!r}]); "
    program += "assert not {'jax', 'flax', 'optax'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
