"""Trains a run to its end, beginning again as often as it is rolled back, and once its model is cut."""

import dataclasses

from stellarbyte.display import Display
from stellarbyte.interrupt import Interrupt
from stellarbyte.run_log import RunLog
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.processes.joined import ALONE, Processes
from stellarbyte_jax.training.guard import BeginAgain
from stellarbyte_jax.training.loop import Training
from stellarbyte_jax.training.watching.diagnostics import Diagnostics
from stellarbyte_jax.training.work_folder import work_folder


def pretrain(
    config: RunConfig,
    diagnostics: Diagnostics = Diagnostics(),  # noqa: B008 - it is frozen
    processes: Processes = ALONE,
    interrupt: Interrupt | None = None,
    display: Display | None = None,
    *,
    amend: bool = False,
) -> bool:
    """Trains until max_steps, from the newest checkpoint in `output_dir` if there is one: see start.py.

    Several `processes` train one run if each calls this with the same config. `interrupt` must not be entered yet; it
    tells its owner afterwards which signal came. `amend` lets a run go on with another config, as far as same_run.py
    allows, and records the change.

    Returns:
        True if max_steps are done or the run has stopped early by its validations, False if a signal ended it (it is
        saved, and can go on).

    Raises:
        UserError: the data, tokenizer, mesh, the run in `init_from` or an earlier one in `output_dir` do not fit the
            config; the processes do not agree; another process writes a run there; or the loss is not finite, and
            training.on_not_finite lets it not go on. Something else failed, such as the token shards or stdout: the
            run is saved before this is raised.
    """
    display = display or Display(quiet=processes.index != 0)
    with (
        work_folder(config.output_dir, processes) as work,
        RunLog(work.path, display, diagnostics.log, processes.index),
    ):
        interrupt, back = interrupt or Interrupt(), None
        while True:
            try:
                return Training(config, work, diagnostics, processes, interrupt, display, amend, back).run()
            except BeginAgain as error:
                # It begins again as any run that goes on. A copy has no traceback, which would keep what it leaves.
                amend, back, diagnostics = False, dataclasses.replace(error), diagnostics.after(error.reached)
