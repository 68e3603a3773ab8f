"""The grid that a group of weights is rounded to: its scale, its zero point and its codes.

The arithmetic is that of compressed-tensors, bit for bit, so that its loaders compute what was measured here.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as whole numbers: each code stands for (code - zero point) · scale.

    codes: int8 [O, I], from -2^(bits-1) to 2^(bits-1) - 1. scale: [O, C], in the dtype that the weight has on disk.
    zero_point: int8 [O, C]; None if symmetric. group_size: the columns of a group; None if C is 1.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bits: int
    group_size: int | None
    symmetric: bool

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight [O, I] that the codes stand for, computed in the scale's dtype and then cast to `dtype`."""
        codes_OCI = self.codes.unflatten(1, (self.scale.shape[1], -1)).to(self.scale.dtype)
        if self.zero_point is not None:
            codes_OCI = codes_OCI - self.zero_point[..., None].to(self.scale.dtype)
        weight_OI = (codes_OCI * self.scale[..., None]).flatten(1)
        return weight_OI if dtype is None else weight_OI.to(dtype)

    def on_cpu(self) -> "QuantizedWeight":
        """The same in the CPU's memory, contiguous."""
        zero = None if self.zero_point is None else self.zero_point.cpu().contiguous()
        return replace(self, codes=self.codes.cpu().contiguous(), scale=self.scale.cpu().contiguous(), zero_point=zero)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes on disk, its share of the scale and the zero point included."""
        a_group = self.scale.element_size() * 8 + (self.bits if self.zero_point is not None else 0)
        return self.bits + a_group * self.scale.numel() / self.codes.numel()


@dataclass(frozen=True)
class Grid:
    """The kind of grid: bits of a code, columns of a group (None for the whole row), and whether it is centred on 0."""

    bits: int
    group_size: int | None
    symmetric: bool

    @property
    def lowest(self) -> int:
        """The smallest code."""
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1

    def columns(self, inputs: int) -> int:
        """Columns of a group in a row of `inputs` columns."""
        return self.group_size or inputs

    def fit(self, weight_OI: Tensor, dtype: torch.dtype, shrink: float | Tensor = 1.0) -> tuple[Tensor, Tensor | None]:
        """The scale [O, C] and zero point [O, C] that let the codes reach from the smallest weight to the largest.

        A symmetric grid reaches as far on both sides of 0. Zero itself is always on the grid.

        weight_OI: float32. dtype: the dtype that the scale is rounded to before codes are chosen. shrink: the part of
        the range that the codes reach, one number or [O, C].
        """
        groups_OCI = weight_OI.unflatten(1, (-1, self.columns(weight_OI.shape[1])))
        low_OC = groups_OCI.amin(-1).clamp(max=0) * shrink
        high_OC = groups_OCI.amax(-1).clamp(min=0) * shrink
        steps = self.highest - self.lowest
        scale_OC = torch.maximum(-low_OC, high_OC) / (steps / 2) if self.symmetric else (high_OC - low_OC) / steps
        # A group of zeros, or of numbers too small for the dtype, has no range: any scale gives it zeros.
        scale_OC = scale_OC.to(dtype)
        scale_OC = torch.where(scale_OC == 0, torch.finfo(dtype).eps, scale_OC)
        if self.symmetric:
            return scale_OC, None
        zero_OC = (self.lowest - low_OC / scale_OC.float()).clamp(self.lowest, self.highest)
        return scale_OC, zero_OC.round().to(torch.int8)

    def codes(self, weight_OI: Tensor, scale_OC: Tensor, zero_OC: Tensor | None) -> Tensor:
        """The nearest code of each weight [O, I], as int8; weights beyond the grid get its first or last code."""
        scaled_OCI = weight_OI.unflatten(1, (scale_OC.shape[1], -1)) / scale_OC[..., None].to(weight_OI.dtype)
        if zero_OC is not None:
            scaled_OCI += zero_OC[..., None].to(weight_OI.dtype)
        return scaled_OCI.clamp_(self.lowest, self.highest).round_().to(torch.int8).flatten(1)

    def rounded(self, weight_OI: Tensor, dtype: torch.dtype, shrink: float | Tensor = 1.0) -> QuantizedWeight:
        """The weight by plain rounding: every weight takes the nearest code. The arguments are those of `fit`."""
        scale_OC, zero_OC = self.fit(weight_OI, dtype, shrink)
        return self.with_codes(self.codes(weight_OI, scale_OC, zero_OC), scale_OC, zero_OC)

    def with_codes(self, codes_OI: Tensor, scale_OC: Tensor, zero_OC: Tensor | None) -> QuantizedWeight:
        """A weight of these codes on this grid."""
        return QuantizedWeight(codes_OI, scale_OC, zero_OC, self.bits, self.group_size, self.symmetric)


def rounded_rows(x: Tensor) -> Tensor:
    """Activations [..., I] as a model with int8 activations sees them: each row on a symmetric grid of its own."""
    largest = x.abs().amax(-1, keepdim=True)
    scale = largest / 127.5
    scale = torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)
    return (x / scale).clamp(-128, 127).round() * scale
