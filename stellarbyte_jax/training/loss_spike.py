"""Tells in the step whether its loss is a spike: far above the losses of the last applied steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from stellarbyte_jax.config import TrainingConfig


@dataclass(frozen=True)
class SpikeRule:
    """A loss is a spike if it is more than `zscore` standard deviations above the mean of the last `window` losses.

    The losses are those of applied steps, float32 [window], oldest first, and nan where there have not been so many
    yet: then nothing is a spike. The standard deviation is that of these losses, divided by their number.
    """

    zscore: float
    window: int

    @classmethod
    def of(cls, training: TrainingConfig) -> "SpikeRule | None":
        """The rule of a run; None if it applies every step."""
        zscore = training.loss_spike_zscore
        return None if zscore is None else cls(zscore, training.loss_spike_window)

    def first(self, losses: Sequence[float] = ()) -> np.ndarray:
        """The window that holds these losses, oldest first, of which the last ones fit: float32 [window]."""
        known = np.asarray(losses[-self.window :], np.float32)
        return np.concatenate([np.full(self.window - len(known), np.nan, np.float32), known])

    def is_spike(self, loss: jax.Array, recent: jax.Array) -> jax.Array:
        """Whether a loss is one; a nan is none."""
        return loss > jnp.mean(recent) + self.zscore * jnp.std(recent)

    def after(self, loss: jax.Array, recent: jax.Array) -> jax.Array:
        """The window after an applied step with this loss."""
        return jnp.append(recent[1:], loss)
