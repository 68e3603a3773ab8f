"""`stellarbyte schedule` tells the rates that training will use, heeds overrides, and loads no JAX."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from stellarbyte.door import main
from stellarbyte_jax.amendments import Amendment, append_amendment
from stellarbyte_jax.config_file import load_run_config, save_config, to_dict
from stellarbyte_jax.training.schedules import learning_rate_schedule

ROOT = Path(__file__).parents[3]
QUICKSTART = str(ROOT / "configs" / "run" / "quickstart.yaml")
COSINE = ["--optimizer.lr_scheduler_type=cosine"]
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
    assert edges <= set(steps) and steps == sorted(set(steps)) and 9 <= len(steps) <= 12
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
    assert main(["schedule", QUICKSTART, f"--training.max_steps={steps}", "--optimizer.warmup_steps=0", *COSINE]) == 0
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


def test_batches_and_rows_that_grow_have_their_sizes_beside_the_rate(capsys: CapSys) -> None:
    growth = ["--training.initial_batch_size=4", "--training.batch_size_warmup_steps=30"]
    growth += ["--training.initial_sequence_length=256", "--training.sequence_length_warmup_steps=20"]
    shape = ["--training.batch_size=16", "--data.sequence_length=512", "--model.max_position_embeddings=512"]
    assert main(["schedule", QUICKSTART, "--training.max_steps=100", *shape, *growth]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[12].split() == ["step", "learning", "rate", "batch", "tokens", "a", "row", "phase"]
    sizes = {int(row.split()[0]): tuple(map(int, row.split()[2:4])) for row in said[13:]}
    assert {step: sizes[step] for step in (1, 16, 21, 31, 100)} == {
        **{1: (4, 256), 16: (8, 256), 21: (8, 512), 31: (16, 512), 100: (16, 512)}
    }
    assert main(["schedule", QUICKSTART, "--training.max_steps=100", *shape]) == 0
    assert "tokens a row" not in capsys.readouterr().out


def amended_run(folder: Path) -> Path:
    """The papers of a run that was amended twice after step 60, and once after step 100."""
    steps = [load_run_config(QUICKSTART, ["--training.max_steps", str(n)]) for n in (100, 300, 200, 240)]
    (folder / "checkpoints" / "100").mkdir(parents=True)
    save_config(steps[-1], folder / "config.yaml")
    for number, step in enumerate((60, 60, 100), 1):
        before, now = (to_dict(config) for config in steps[number - 1 : number + 1])
        changes = {"training.max_steps": (before["training"]["max_steps"], now["training"]["max_steps"])}
        append_amendment(folder, Amendment(number, step, "2026-11-30T08:00:00", changes, 0, before, now))
    return folder


def test_a_run_has_the_rates_that_it_has_had_and_will_have(tmp_path: Path, capsys: CapSys) -> None:
    run = amended_run(tmp_path)
    assert main(["schedule", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["max_steps"] == 240
    assert found["amendments"] == [
        {"after_step": 60, "changes": "training.max_steps 300 -> 200"},
        {"after_step": 100, "changes": "training.max_steps 200 -> 240"},
    ]
    optimizer = load_run_config(QUICKSTART).optimizer
    for row in found["steps"]:
        max_steps = 100 if row["step"] <= 60 else 200 if row["step"] <= 100 else 240
        rate = learning_rate_schedule(optimizer, max_steps, np)(row["step"] - 1)
        assert row["learning_rate"] == pytest.approx(rate, rel=1e-6)
    assert {60, 61, 100, 101, 240} <= {row["step"] for row in found["steps"]}
    spans = [(phase["first_step"], phase["last_step"]) for phase in found["phases"]]
    assert spans[0][0] == 1 and spans[-1][1] == 240
    assert all(after[0] == before[1] + 1 for before, after in pairwise(spans))

    # With overrides, it is what --amend would make of it after the newest checkpoint.
    assert main(["schedule", str(run), "--training.max_steps", "400"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("decay 61-100, decay 101-400")
    assert said[2] == "amended after step 100: by --training.max_steps 400"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: CapSys) -> None:
    assert main(["schedule", str(tmp_path)]) == 2
    assert "is a folder without config.yaml: name a run that has been trained, or a config" in capsys.readouterr().err
