"""The rooms keep to themselves: who may import whom, and what an import costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_import_rules() -> None:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run([sys.executable, "-c", program, "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import stellarbyte_jax", ["jax", "flax", "torch", "transformers", "numpy"]),
        ("from stellarbyte_jax import ByteConfig", ["jax", "flax", "torch", "transformers", "numpy"]),
        ("import stellarbyte_jax.config_file", ["jax", "flax", "torch", "transformers", "numpy"]),
        ("import stellarbyte_jax.cli", ["jax", "flax", "torch", "transformers", "orbax"]),
        ("from stellarbyte_jax import ByteModel", ["torch", "transformers", "orbax"]),
        ("import stellarbyte_jax.checkpoints.checkpoint", ["torch", "transformers"]),
        ("import convert", ["jax", "torch", "transformers"]),
        ("import convert.cli", ["torch", "transformers"]),
        ("import stellarbyte_torch.cli", ["torch", "transformers", "peft"]),
        ("import stellarbyte_torch", ["jax", "flax", "orbax"]),
    ],
)
def test_what_an_import_loads(statement: str, unwanted: list[str]) -> None:
    program = f"{statement}; import sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not set(unwanted) & set(json.loads(done.stdout.splitlines()[-1]))
