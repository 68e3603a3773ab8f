"""Trains a pruned model on."""

import subprocess
import sys
from pathlib import Path

from stellarbyte.errors import UserError


def recover(command: str, config: Path, model: Path, output_dir: Path, pruned: Path) -> None:
    """Trains `pruned` by a config, with `stellarbyte pretrain` or `finetune` in a process of its own.

    model: what the command takes as --model. output_dir: where the run goes.

    Raises:
        UserError: the training fails; the command itself has said why.
    """
    words = [command, str(config), "--model", str(model), "--output_dir", str(output_dir)]
    if subprocess.run([sys.executable, "-m", "stellarbyte", *words], check=False).returncode != 0:
        raise UserError(f"--recover {config} did not train {pruned}, as said above; the pruned model is there")
