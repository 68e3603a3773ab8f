"""Law 6 at random moments: a run that is killed again and again, by random signals, ends as one that never was."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import save_config
from test_jax.runs import bits, records

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "stellarbyte", "pretrain", str(config)]


def environment() -> dict[str, str]:
    return os.environ | {"JAX_NUM_CPU_DEVICES": "1"}


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_law_6_at_random_moments(seed: int, run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    steps = {"max_steps": 400, "eval_steps": 40}
    whole, parts = tmp_path / "whole.yaml", tmp_path / "parts.yaml"
    for path in (whole, parts):
        config = run_config(training=steps, checkpoint={"save_steps": 25})
        save_config(config, path)
        path.write_text(path.read_text().replace(config.output_dir, str(path.with_suffix(""))))
    began = time.monotonic()
    subprocess.run(command(whole), env=environment(), check=True, capture_output=True)
    longest = time.monotonic() - began

    generator = random.Random(seed)
    for _ in range(10):
        number = generator.choice(SIGNALS)
        process = subprocess.Popen(
            command(parts), env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            out, errors = process.communicate(timeout=generator.uniform(0.2, 0.6) * longest)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            out, errors = process.communicate(timeout=120)
        assert process.returncode in (0, -number if number == signal.SIGKILL else 128 + number), errors
        assert "Traceback" not in errors
        if "stopped after step" in out:
            step = int(out.partition("stopped after step ")[2].partition(",")[0])
            assert (tmp_path / "parts" / "checkpoints" / str(step)).is_dir(), "what is said to be saved is saved"
    subprocess.run(command(parts), env=environment(), check=True, capture_output=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")
