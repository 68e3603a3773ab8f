"""Says how a run has ended, alike in all its processes."""

import signal

from stellarbyte.errors import UserError
from stellarbyte.interrupt import Interrupt
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.processes.joined import Processes
from stellarbyte_jax.training.failures import Failures
from stellarbyte_jax.training.watching.metrics import MetricsLog
from stellarbyte_jax.training.watching.summary import summary


def conclude(
    config: RunConfig,
    log: MetricsLog,
    step: int,
    early: str | None,
    processes: Processes,
    interrupt: Interrupt,
    failures: Failures,
    *,
    stopping: bool,
) -> bool:
    """The run's last words; everything is saved by then.

    step: the number of steps that are done. early: why it ends before max_steps, if it does by its validations.
    stopping: whether a signal or a failure in some process has stopped it.

    Returns:
        False if a signal ended the run, which `interrupt` then tells in all processes.

    Raises:
        UserError: something failed in some process.
    """
    if not stopping:
        log.conclude("\n".join(filter(None, [early, summary(config, log, step)])))
    ends = processes.share([interrupt.number, None if failures.first is None else str(failures.first)])
    signals = [number for number, _ in ends if number is not None]
    failing = [index for index, (_, failure) in enumerate(ends) if failure is not None]
    if stopping and not failing and not signals:  # JAX's preemption sync took the signal before our handler was set
        signals = [signal.SIGTERM]
    if signals and (stopping or failing):  # a terminal that is closed sends a signal, and makes stdout fail
        interrupt.number = signals[0]
        where = f"stopped after step {step}, saved in {config.output_dir}" if step else "stopped before the first step"
        log.conclude(f"{where}: the same command goes on from there")
        return False
    if failing:
        if failures.first is None or processes.index != failing[0]:
            processes.await_end()
        where = f"; saved after step {step}: the same command goes on from there" if step else ""
        raise UserError(f"{failures.first}{where}") from failures.first
    return True
