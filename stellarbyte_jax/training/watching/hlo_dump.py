"""A step's program as text: what JAX hands to XLA, and what XLA makes of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from stellarbyte.errors import UserError
from stellarbyte_jax.training.watching.diagnostics import HLO_FILES


def dump_hlo(step: Any, arguments: Sequence[Any], folder: Path) -> None:
    """Compiles the jitted `step` for these arguments, and writes the HLO before and after optimisation into `folder`.

    Calling the step afterwards does not compile it again. The first file is there before the compiler is asked, to be
    looked at where it fails. Of several processes, which all run one program, the first writes.

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
