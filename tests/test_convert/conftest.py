import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import convert.certificate as certificates
from convert import hf_checkpoint
from convert.run_checkpoint import RunCheckpoint, save
from convert.verifying.behaviour import Behaviour
from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from stellarbyte_jax.training.state import init_params
from test_convert.models import tiny

VOCAB_SIZE = 300

TEXT = "the star that was a byte, and the byte that was a star: def star(byte): return byte * 2\n"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer([TEXT] * 20, VOCAB_SIZE, folder, report=lambda _: None)


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory, tokenizer):
    """A run with one checkpoint; nobody may change it."""
    config = tiny(vocab_size=VOCAB_SIZE, num_hidden_layers=2, xpos_learnable=True, xpos_scale_base=32.0)
    path = tmp_path_factory.mktemp("runs") / "run"
    save(
        path,
        RunCheckpoint(
            _as_numpy(jax.jit(init_params, static_argnums=(0, 1))(config, 0)), config, tokenizer.files, step=0
        ),
    )
    return path


@pytest.fixture(scope="session")
def exported(run_dir, tmp_path_factory):
    """Its export; nobody may change it."""
    path = tmp_path_factory.mktemp("exports") / "hf"
    hf_checkpoint.to_hf(run_dir, path)
    return path


@pytest.fixture(scope="session")
def python():
    """Runs code in a Python of its own and returns what it printed."""

    def run(code: str, cwd: Path, *arguments: str) -> str:
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


_MEASURED = """
import re, sys
from pathlib import Path
from stellarbyte.door import main
import convert.hf_checkpoint, stellarbyte_jax.checkpoints.lora_base, stellarbyte_jax.checkpoints.imported

def peak():  # a child's rusage would count what its parent held before it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = peak()
code = main(sys.argv[1:])
print(code, (peak() - before) // 1024)
"""


@pytest.fixture
def memory_of(python, tmp_path):
    """Runs a command and returns its exit code, and the MiB that it held at most above what its libraries take."""

    def run(*command: str, imports: str = "sys") -> tuple[int, int]:
        printed = python(f"import {imports}\n{_MEASURED}", tmp_path, *command)
        code, megabytes = map(int, printed.split("\n")[-2].split())
        return code, megabytes

    return run


@pytest.fixture
def no_models(monkeypatch):
    """Leaves out the comparison of behaviour, for tests of all else."""
    monkeypatch.setattr(certificates, "_behaviour", lambda *_, **__: Behaviour([]))


def _as_numpy(tree):
    return {k: _as_numpy(v) if isinstance(v, dict) else np.asarray(v) for k, v in tree.items()}
