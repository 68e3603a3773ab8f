"""Ends a run at the first step whose loss or gradient is not finite, without making the device wait for the answer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stellarbyte.errors import UserError

_ADVICE = "lower optimizer.learning_rate or raise optimizer.warmup_steps"


class NotFinite(Exception):
    """A step had a loss or a gradient that is no finite number; it and those after it were not applied."""

    def __init__(self, step: int, name: str, value: float) -> None:
        super().__init__(f"the {name} of step {step} is {value}: {_ADVICE}")
        self.step = step


class FiniteWatch:
    """Looks at each step's figures when the next step is under way, so at the same step in each of several processes.

    Raises:
        NotFinite: from both methods, naming the first such step.
    """

    def __init__(self) -> None:
        self._latest: tuple[int, dict[str, jax.Array]] | None = None

    def after(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """To be called after each step; looks at the one before."""
        before, self._latest = self._latest, (step, {name: metrics[name] for name in ("loss", "grad_norm")})
        _check(before)

    def catch_up(self) -> None:
        """Looks at the latest step too: to be called before it is saved or shown to be good."""
        latest, self._latest = self._latest, None
        _check(latest)


def _check(figures: tuple[int, dict[str, jax.Array]] | None) -> None:
    if figures is None:
        return
    step, values = figures
    # The gradient too: a loss may be the last finite one, and what is saved is what this gradient made of it.
    for name, value in jax.device_get(values).items():
        if not np.isfinite(value):
            raise NotFinite(step, {"grad_norm": "gradient"}.get(name, name), float(value))


def check_finite(params: Any, step: int) -> None:
    """Refuses parameters that hold what is no finite number.

    Raises:
        UserError: they do.
    """
    if not bool(_all_finite(params)):
        raise UserError(f"the parameters after step {step} are not finite and are not saved: {_ADVICE}")


@jax.jit
def _all_finite(params: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))
