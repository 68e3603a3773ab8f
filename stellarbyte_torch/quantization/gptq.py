"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): later columns make up for the rounding errors of earlier ones.

With H = Σ x xᵀ + damping and the upper triangular U of H⁻¹ = UᵀU, column j is rounded, and its error is spread over the
columns k that are still to come:

    e = (w_j - round(w_j)) / U_jj        w_k <- w_k - e · U_jk

Columns are visited in the order of H's diagonal, largest first ("act-order"), while each keeps the scale of the group
in whose place it stands ("static groups"): the codes need no permutation on disk. Everything is computed in float64.
Unlike in the paper, a grid need not reach its group's largest weight: ranges are shrunk first, as `clipping` says.
"""

import torch
from torch import Tensor

from stellarbyte.errors import UserError
from stellarbyte_torch.quantization.calibrator import Calibrator
from stellarbyte_torch.quantization.clipping import best_shrink
from stellarbyte_torch.quantization.grid import Grid, QuantizedWeight
from stellarbyte_torch.quantization.settings import QuantizationSettings
from stellarbyte_torch.quantization.statistics import Statistics

# Columns whose errors reach the columns behind them together, by one matrix product.
_COLUMNS = 128
# Rows that are worked on at once; rows are independent of each other, and a large head has very many.
_ROWS = 2048


def quantized(
    weight_OI: Tensor, statistics: Statistics, settings: QuantizationSettings, dtype: torch.dtype
) -> QuantizedWeight:
    """The codes by the paper's formulas. Raises UserError if H needs more damping."""
    grid = settings.grid
    scale_OC, zero_OC = grid.fit(weight_OI, dtype, best_shrink(weight_OI, statistics, grid, dtype))
    if statistics.rows == 0:
        return grid.with_codes(grid.codes(weight_OI, scale_OC, zero_OC), scale_OC, zero_OC)
    assert statistics.hessian_II is not None
    order_I = statistics.hessian_II.diagonal().argsort(descending=True, stable=True)
    upper_II = inverse_factor(statistics.hessian_II[order_I][:, order_I], settings.damping)
    groups = (order_I // grid.columns(weight_OI.shape[1])).tolist()
    scale_CO = scale_OC.double().T.contiguous()
    zero_CO = torch.zeros_like(scale_CO) if zero_OC is None else zero_OC.double().T.contiguous()
    codes_OI = torch.empty(weight_OI.shape, dtype=torch.int8, device=weight_OI.device)
    for start in range(0, len(weight_OI), _ROWS):
        rows = slice(start, start + _ROWS)
        # Columns are read and written one by one, so they are made rows.
        weight_IO = weight_OI[rows].T[order_I].double()
        found_IO = _codes(weight_IO, scale_CO[:, rows], zero_CO[:, rows], groups, upper_II, grid, dtype)
        codes_OI[rows] = torch.empty_like(found_IO).index_copy_(0, order_I, found_IO).T
    return grid.with_codes(codes_OI, scale_OC, zero_OC)


def inverse_factor(hessian_II: Tensor, damping: float) -> Tensor:
    """The upper triangular U with UᵀU = H⁻¹, float64, after a share `damping` of H's mean diagonal is added to H.

    A column that was always 0 has no say in the output; it gets a diagonal of 1 and is rounded as it is.
    """
    hessian_II = hessian_II.double()
    diagonal_I = hessian_II.diagonal()
    added_I = damping * diagonal_I.mean() + (diagonal_I == 0).double()
    # H = RRᵀ with R upper triangular is Cholesky's factorisation from the last column on, and U is R's inverse.
    reversed_II = (hessian_II + torch.diag(added_I)).flip(0, 1)
    lower_II, info = torch.linalg.cholesky_ex(reversed_II)
    if info.item() != 0:
        raise UserError(f"damping {damping} is too small for these calibration rows: use {min(1.0, 10 * damping):g}")
    identity_II = torch.eye(len(lower_II), dtype=torch.float64, device=lower_II.device)
    return torch.linalg.solve_triangular(lower_II, identity_II, upper=False).flip(0, 1)


def _codes(
    weight_IO: Tensor,
    scale_CO: Tensor,
    zero_CO: Tensor,
    groups: list[int],
    upper_II: Tensor,
    grid: Grid,
    dtype: torch.dtype,
) -> Tensor:
    """The codes [I, O] of columns that come in their order; `weight_IO` is used up. groups: that of each column."""
    codes_IO = torch.empty(weight_IO.shape, dtype=torch.int8, device=weight_IO.device)
    for start in range(0, len(weight_IO), _COLUMNS):
        end = min(start + _COLUMNS, len(weight_IO))
        errors_IO = torch.empty_like(weight_IO[start:end])
        for column in range(start, end):
            scale_O, zero_O = scale_CO[groups[column]], zero_CO[groups[column]]
            code_O = (weight_IO[column] / scale_O + zero_O).clamp_(grid.lowest, grid.highest).round_()
            codes_IO[column] = code_O.to(torch.int8)
            # A loader multiplies in the dtype of the scale.
            rounded_O = ((code_O - zero_O).to(dtype) * scale_O.to(dtype)).double()
            error_O = (weight_IO[column] - rounded_O) / upper_II[column, column]
            weight_IO[column + 1 : end].addr_(upper_II[column, column + 1 : end], error_O, alpha=-1)
            errors_IO[column - start] = error_O
        weight_IO[end:].addmm_(upper_II[start:end, end:].T, errors_IO, alpha=-1)
    return codes_IO


CALIBRATOR = Calibrator(quantized, in_turn=True)
