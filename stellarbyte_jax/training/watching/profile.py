"""Traces some steps of a run with JAX's profiler, for xprof or TensorBoard."""

import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from stellarbyte.errors import UserError
from stellarbyte_jax.training.watching.metrics import MetricsLog


class Profile:
    """While entered, traces the steps from `steps[0]` to `steps[1]`, both included; None traces nothing.

    The loop calls `before` and `after` at each step. They wait for the devices only at both ends of the trace, so that
    it holds exactly these steps. If the run ends during the trace, the part until then is kept. Each process writes a
    file of its own, RUN/profile/plugins/profile/steps-START-STOP/HOST.xplane.pb, which is where xprof looks.

    Raises:
        UserError: RUN/profile cannot be written.
    """

    def __init__(self, steps: tuple[int, int] | None, run_dir: str | Path, log: MetricsLog) -> None:
        self._steps = steps
        self._folder = Path(run_dir) / "profile"
        # One host may run several processes, which would all write the same HOST.xplane.pb.
        self._partial = self._folder / f".partial-{jax.process_index()}"
        self._log = log
        self._last: int | None = None
        self._annotation: Any = None

    def __enter__(self) -> Self:
        if self._steps is not None:
            try:
                shutil.rmtree(self._partial, ignore_errors=True)
                self._partial.mkdir(parents=True)
            except OSError as error:
                raise UserError(f"{self._folder} cannot be written: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._last is not None:
            self._stop(self._last)
        if self._steps is not None:
            shutil.rmtree(self._partial, ignore_errors=True)

    def before(self, step: int, state: Any) -> None:
        """Begins the trace if it starts here; call it before each step with the result of the step before."""
        if self._steps is None or not self._steps[0] <= step <= self._steps[1]:
            return
        if self._last is None:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.session_id = "steps"
            # Tracing every Python call would slow down the steps; annotations and the runtime's events are still there.
            options.python_tracer_level = 0
            with self._log.paused():
                jax.profiler.start_trace(self._partial, profiler_options=options)
            self._last = step
        if self._annotation is not None:  # the step was left by an exception
            self._annotation.__exit__(None, None, None)
        self._annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
        self._annotation.__enter__()

    def after(self, step: int, made: Any) -> None:
        """Ends the trace if it stops here; call it after each step with the step's result."""
        if self._last is None:
            return
        self._annotation.__exit__(None, None, None)
        self._annotation = None
        self._last = step
        if self._steps is not None and step == self._steps[1]:
            jax.block_until_ready(made)
            with self._log.paused():
                self._stop(step)

    def _stop(self, last: int) -> None:
        assert self._steps is not None
        first, self._last = self._steps[0], None
        if self._annotation is not None:  # the step was left by an exception
            self._annotation.__exit__(None, None, None)
        folder = self._folder / "plugins" / "profile" / f"steps-{first}-{last}"
        process = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
        try:
            jax.profiler.stop_trace()
            folder.mkdir(parents=True, exist_ok=True)
            for kind in (".xplane.pb", ".trace.json.gz"):
                for path in self._partial.glob(f"plugins/profile/steps/*{kind}"):
                    path.replace(folder / f"{path.name.removesuffix(kind)}{process}{kind}")
        except (OSError, jax.errors.JaxRuntimeError) as error:
            # A run of weeks must not end because its profile cannot be written.
            self._log.say(f"warning: the profile of steps {first} to {last} cannot be written to {folder}: {error}")
            return
        self._log.say(
            f"profile of steps {first} to {last} in {folder}; to look at it: pip install xprof, "
            f"xprof --logdir {self._folder}"
        )
