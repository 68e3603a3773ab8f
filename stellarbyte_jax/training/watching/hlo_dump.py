"""Writes a step's program as text: the HLO that JAX hands to XLA, and the HLO that XLA makes of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from stellarbyte.errors import UserError
from stellarbyte_jax.training.watching.diagnostics import HLO_FILES


def dump_hlo(step: Any, arguments: Sequence[Any], folder: Path) -> None:
    """Compiles the jitted `step` for these arguments, and writes the HLO before and after optimisation into `folder`.

    Calling the step afterwards does not compile it again. The first file is written before the compiler runs, so it is
    there if compiling fails. Several processes run the same program, and only process 0 writes it.

    Raises:
        UserError: the folder cannot be written.
    """
    before, after = (folder / name for name in HLO_FILES)
    lowered = step.lower(*arguments)
    _write(before, lowered.as_text(dialect="hlo", debug_info=True))
    _write(after, lowered.compile().as_text())


def _write(path: Path, text: str) -> None:
    if jax.process_index() != 0:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--dump-hlo {path} cannot be written: {error.strerror}") from error
