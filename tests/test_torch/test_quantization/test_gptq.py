"""GPTQ against Optimal Brain Quantization in float64, written from the formulas, one column at a time."""

import pytest
import torch
from torch import Tensor

from stellarbyte_torch.quantization.gptq import inverse_factor, quantized
from stellarbyte_torch.quantization.grid import Grid, QuantizedWeight
from stellarbyte_torch.quantization.settings import QuantizationSettings
from stellarbyte_torch.quantization.statistics import Statistics


def calibrated(inputs: int, rows: int = 200, dead: int | slice | None = None) -> Statistics:
    generator = torch.Generator().manual_seed(5)
    mix = torch.randn(inputs, inputs, generator=generator) * torch.linspace(0.2, 2.0, inputs)
    x = torch.randn(rows, inputs, generator=generator) @ mix
    if dead is not None:
        x[:, dead] = 0.0
    statistics = Statistics(inputs, torch.device("cpu"))
    statistics.add(x)
    return statistics


def weight_of(outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(6))


def obq_codes(weight: Tensor, hessian: Tensor, settings: QuantizationSettings, on: QuantizedWeight) -> Tensor:
    """Frantar & Alistarh 2022, in the order of H's diagonal: w_F -= e / [H⁻¹]_qq · [H⁻¹]_q, then q leaves H⁻¹."""
    grid = settings.grid
    scale, zero = on.scale, on.zero_point
    columns = grid.columns(weight.shape[1])
    hessian = hessian.double()
    damped = hessian + settings.damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    for row in range(len(weight)):
        w, inverse = weight[row].double().clone(), torch.linalg.inv(damped)
        for q in hessian.diagonal().argsort(descending=True, stable=True).tolist():
            step = scale[row, q // columns].double()
            origin = 0.0 if zero is None else zero[row, q // columns].double()
            code = (w[q] / step + origin).clamp(grid.lowest, grid.highest).round()
            codes[row, q] = code.to(torch.int8)
            error = w[q] - (code - origin) * step
            w -= error / inverse[q, q] * inverse[:, q]
            inverse = inverse - torch.outer(inverse[:, q], inverse[q]) / inverse[q, q]
    return codes


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), [(4, 8, True), (3, None, False), (2, 8, False)])
def test_it_is_obq_in_the_order_of_the_diagonal(bits: int, group_size: int | None, symmetric: bool) -> None:
    settings = QuantizationSettings("gptq", bits, group_size, symmetric)
    weight, statistics = weight_of(6, 24), calibrated(24)
    ours = quantized(weight, statistics, settings, torch.float32)
    assert torch.equal(ours.codes, obq_codes(weight, statistics.hessian_II, settings, ours))
    plain = Grid(bits, group_size, symmetric).rounded(weight, torch.float32)
    found, rounding = (statistics.difference(weight, each.dequantized()) for each in (ours, plain))
    assert found < 0.9 * rounding


def test_blocks_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = QuantizationSettings("gptq", 4, 8)
    weight, statistics = weight_of(5, 40), calibrated(40)
    whole = quantized(weight, statistics, settings, torch.bfloat16)
    monkeypatch.setattr("stellarbyte_torch.quantization.gptq._COLUMNS", 7)
    monkeypatch.setattr("stellarbyte_torch.quantization.gptq._ROWS", 2)
    assert torch.equal(quantized(weight, statistics, settings, torch.bfloat16).codes, whole.codes)


def test_the_factor_is_that_of_the_inverse() -> None:
    hessian = calibrated(12).hessian_II
    upper = inverse_factor(hessian, 0.01)
    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(12, dtype=torch.float64)
    assert torch.equal(upper, upper.triu())
    assert torch.allclose(upper.T @ upper @ damped, torch.eye(12, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("dead", [3, slice(None)], ids=["one", "all"])
def test_columns_that_are_always_zero_are_rounded_as_they_are(dead: int | slice) -> None:
    settings = QuantizationSettings("gptq", 4, 8)
    weight, statistics = weight_of(4, 16), calibrated(16, dead=dead)
    ours = quantized(weight, statistics, settings, torch.float32)
    codes = settings.grid.codes(weight, ours.scale, ours.zero_point)
    plain = settings.grid.with_codes(codes, ours.scale, ours.zero_point)
    # In float64 a tie may go to the other side, which is as near.
    found, nearest = ((each.dequantized() - weight)[:, dead].abs() for each in (ours, plain))
    assert torch.allclose(found, nearest, atol=1e-5)
