"""Finds how far each group's range is best shrunk: a few clipped weights may cost less than a coarse grid for all."""

import torch
from torch import Tensor

from stellarbyte_torch.quantization.grid import Grid
from stellarbyte_torch.quantization.statistics import Statistics

_TRIED = 11


def shrinks(bits: int) -> tuple[float, ...]:
    """The parts of its range that are tried for a grid: from all of it to 4 codes less, or to half of it.

    With many bits, clipping by more only costs. What is gained there is another rounding of all weights, and of several
    the one whose errors cancel best.
    """
    deepest = min(0.5, 8 / 2**bits)
    return tuple(1 - deepest * step / (_TRIED - 1) for step in range(_TRIED))


def best_shrink(weight_OI: Tensor, statistics: Statistics, grid: Grid, dtype: torch.dtype) -> Tensor:
    """The part [O, C] of its range that each group's grid reaches at the smallest output error of that group alone."""
    assert statistics.hessian_II is not None
    C, inputs = weight_OI.shape[1] // grid.columns(weight_OI.shape[1]), grid.columns(weight_OI.shape[1])
    if statistics.rows == 0:
        return weight_OI.new_ones(len(weight_OI), C)
    blocks_CII = torch.stack(
        [
            statistics.hessian_II[start : start + inputs, start : start + inputs]
            for start in range(0, C * inputs, inputs)
        ]
    )
    best_OC = weight_OI.new_full((len(weight_OI), C), torch.inf)
    shrink_OC = torch.ones_like(best_OC)
    for shrink in shrinks(grid.bits):
        change_OI = grid.rounded(weight_OI, dtype, shrink).dequantized(torch.float32) - weight_OI
        change_COI = change_OI.unflatten(1, (C, inputs)).transpose(0, 1)
        error_OC = ((change_COI @ blocks_CII) * change_COI).sum(-1).T
        is_better = error_OC < best_OC
        best_OC = torch.where(is_better, error_OC, best_OC)
        shrink_OC = torch.where(is_better, shrink, shrink_OC)
    return shrink_OC
