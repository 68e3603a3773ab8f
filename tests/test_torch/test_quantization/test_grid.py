"""Our grids are compressed-tensors' own, to the last bit."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, fake_quantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp

from stellarbyte_torch.quantization.grid import Grid, QuantizedWeight, rounded_rows


def weights() -> torch.Tensor:
    """Rows of all kinds: skewed, positive alone, huge, tiny, with an outlier, halfway between codes, zeros."""
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    weight[1] += 2.0
    weight[2] = weight[2].abs()
    weight[3] = -weight[3].abs()
    weight[4] *= 1e30
    weight[5] *= 1e-30
    weight[6, 3] = 100.0
    weight[7] = torch.arange(-32, 32) / 2.0
    weight[8] = 0.0
    weight[9, :32] = 0.0
    return weight


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [8, 32, None])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_library_computes_the_same(bits: int, group_size: int | None, symmetric: bool) -> None:
    weight, grid = weights(), Grid(bits, group_size, symmetric)
    strategy = {"strategy": "channel"} if group_size is None else {"strategy": "group", "group_size": group_size}
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, zp_dtype=torch.int8, **strategy)
    groups = weight.unflatten(1, (-1, group_size or 64))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)

    ours = grid.rounded(weight, torch.float32)

    assert torch.equal(ours.scale, scale)
    if symmetric:
        assert ours.zero_point is None
    else:
        in_range = scale != torch.finfo(torch.float32).eps  # a group of zeros has any zero point
        assert torch.equal(ours.zero_point[in_range], zero[in_range])
    zero = torch.zeros_like(scale, dtype=torch.int8) if symmetric else ours.zero_point
    assert torch.equal(ours.codes, quantize(weight, scale, zero, args, dtype=torch.int8))
    assert torch.equal(ours.dequantized(), fake_quantize(weight, scale, zero, args))
    assert torch.equal(unpack_from_int32(pack_to_int32(ours.codes, bits), bits, weight.shape), ours.codes)
    for dtype in (torch.bfloat16, torch.float16):
        narrow = grid.rounded(weight.clamp(-100, 100), dtype)
        assert narrow.scale.dtype == dtype
        assert torch.equal(narrow.dequantized(), dequantize(narrow.codes, narrow.scale, narrow.zero_point, args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_rounded_as_the_library_does(dtype: torch.dtype) -> None:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[0, 1] = 0.0
    args = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True)
    scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Identity())
    assert torch.equal(rounded_rows(x), fake_quantize(x, scale, zero, args))


def test_a_code_is_the_nearest_there_is() -> None:
    weight, grid = weights()[:4], Grid(4, 16, symmetric=False)
    rounded = grid.rounded(weight, torch.float32)
    error = (rounded.dequantized() - weight).abs()
    for change in (-1, 1):
        codes = (rounded.codes + change).clamp(grid.lowest, grid.highest)
        other = grid.with_codes(codes, rounded.scale, rounded.zero_point).dequantized()
        assert (error <= (other - weight).abs() + 1e-6).all()


def test_the_bits_of_a_weight_on_disk() -> None:
    codes = torch.zeros(4, 64, dtype=torch.int8)
    scale, zero = torch.ones(4, 2, dtype=torch.bfloat16), torch.zeros(4, 2, dtype=torch.int8)
    assert QuantizedWeight(codes, scale, None, 4, 32, symmetric=True).bits_per_weight == 4 + 16 / 32
    assert QuantizedWeight(codes, scale, zero, 4, 32, symmetric=False).bits_per_weight == 4 + 20 / 32
