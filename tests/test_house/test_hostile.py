"""A sample of the hostile table, of every kind: each case ends in a sentence, or is accepted for a reason."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_each_case_ends_as_it_may() -> None:
    command = [sys.executable, "-m", "tests.hostile_table", "--sample", "3", "--jobs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | 36 |" in done.stdout
