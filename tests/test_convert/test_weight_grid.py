"""The grid that training rounds to is the grid of an export's plain rounding: the same numbers on both sides."""

import jax
import numpy as np
import pytest
import torch

from stellarbyte_jax.model.weight_grid import WeightGrid
from stellarbyte_torch.quantization.grid import Grid


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [8, 32, None])
def test_weights_are_rounded_to_the_same_values(bits: int, size: int | None) -> None:
    weights = np.random.default_rng(bits).normal(size=(2, 64, 48)).astype(np.float32)
    weights[0, :, 5], weights[1, :8, 7], weights[1, 3, 9] = 0, 1e-30, 1e20
    ours = np.asarray(jax.jit(WeightGrid(bits, size).rounded)(weights))
    for layer, rounded in zip(weights, ours, strict=True):
        theirs = Grid(bits, size, symmetric=True).rounded(torch.tensor(layer.T), torch.float32).dequantized()
        assert np.array_equal(rounded, theirs.numpy().T)
