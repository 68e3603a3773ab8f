"""Ends a run at the first step whose loss or gradient is not finite, without making the device wait for the answer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stellarbyte.errors import UserError

_ADVICE = "lower optimizer.learning_rate or raise optimizer.warmup_steps"


class NotFinite(Exception):
    """A step had a loss or a gradient that is not finite; this step and those after it were not applied."""

    def __init__(self, step: int, name: str, value: float) -> None:
        super().__init__(f"the {name} of step {step} is {value}: {_ADVICE}")
        self.step = step


class FiniteWatch:
    """Checks each step's figures while the next step runs, and so after the same step in all processes.

    Raises:
        NotFinite: from both methods; it names the first step whose figures are not finite.
    """

    def __init__(self) -> None:
        self._latest: tuple[int, dict[str, jax.Array]] | None = None

    def after(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Checks the step before this one; call it after each step."""
        before, self._latest = self._latest, (step, {name: metrics[name] for name in ("loss", "grad_norm")})
        _check(before)

    def catch_up(self) -> None:
        """Checks the latest step too; call it before that step is saved or validated."""
        latest, self._latest = self._latest, None
        _check(latest)


def _check(figures: tuple[int, dict[str, jax.Array]] | None) -> None:
    if figures is None:
        return
    step, values = figures
    # The gradient is checked too: a finite loss can have a gradient that is not, which would spoil the parameters.
    for name, value in jax.device_get(values).items():
        if not np.isfinite(value):
            raise NotFinite(step, {"grad_norm": "gradient"}.get(name, name), float(value))


def check_finite(params: Any, step: int) -> None:
    """Refuses parameters that are not all finite.

    Raises:
        UserError: one is nan or infinite.
    """
    if not bool(_all_finite(params)):
        raise UserError(f"the parameters after step {step} are not finite and are not saved: {_ADVICE}")


@jax.jit
def _all_finite(params: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
