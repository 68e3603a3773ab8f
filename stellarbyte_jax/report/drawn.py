"""Draws the weights that a run began with from its seed once more."""

import jax
import numpy as np

from stellarbyte.architecture import ByteConfig
from stellarbyte_jax.training.state import Params, init_params


def drawn_params(config: ByteConfig, seed: int) -> Params:
    """The parameters as numpy arrays, drawn as a run draws them: under jit."""
    drawn: Params = jax.tree.map(np.asarray, jax.jit(lambda: init_params(config, seed))())
    return drawn
