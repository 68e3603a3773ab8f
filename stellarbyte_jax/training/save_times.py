"""Says after which steps a run is saved, so that all of its processes agree without waiting for each other."""

import time
from collections.abc import Callable

from stellarbyte_jax.checkpoint_config import CheckpointConfig
from stellarbyte_jax.processes.joined import ALONE, Processes

# Processes compare clocks about this often. It costs them a message each, and lets a save be this late.
_SECONDS_BETWEEN_LOOKS = 5.0


class SaveTimes:
    """A save is due after every `save_steps` steps, and once `save_minutes` have passed since the last one.

    The clock of process 0 counts. All processes look at it after the same steps, each of which follows from what
    process 0 said at the look before: its pace tells how many steps take a few seconds.

    Args:
        config: when to save.
        step: the number of steps that are done.
        processes: the processes that train the run.
        clock: gives seconds since any moment.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        step: int,
        processes: Processes = ALONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps = config.save_steps
        self._seconds = None if config.save_minutes is None else 60 * config.save_minutes
        self._processes, self._clock = processes, clock
        self._saved_at = self._looked_at = clock()
        self._looked, self._next_look = step, step + 1

    def due(self, step: int) -> bool:
        """Whether a save is due after this step; all processes must ask after every step, or none of them."""
        if self._steps is not None and step % self._steps == 0:
            return True
        if self._seconds is None or step < self._next_look:
            return False
        now = self._clock()
        passed, pace = now - self._saved_at, (now - self._looked_at) / (step - self._looked)
        passed, pace = self._processes.share([passed, pace])[0]
        wait = min(_SECONDS_BETWEEN_LOOKS, self._seconds - passed)
        self._looked, self._looked_at = step, now
        self._next_look = step + max(1, int(wait / max(pace, 1e-9)))
        return passed >= self._seconds

    def saved(self, step: int) -> None:
        """Begins anew, as the run is saved after this step."""
        self._saved_at = self._looked_at = self._clock()
        self._looked, self._next_look = step, step + 1
