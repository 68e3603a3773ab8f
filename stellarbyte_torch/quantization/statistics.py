"""What calibration keeps of the rows that a linear layer reads, and how far a quantised weight is from the original."""

import copy

import torch
from torch import Tensor

from stellarbyte_torch.quantization.grid import rounded_rows


class Statistics:
    """Sums over the rows x [I] that a linear layer has read.

    The output error of a changed weight is Σ |ΔW x|² = tr(ΔW (Σ x xᵀ) ΔWᵀ), so Σ x xᵀ is enough to measure it, however
    many rows there are. If activations are rounded as well, the error is no function of Σ x xᵀ; then some of the rows
    themselves are kept instead.

    keep_every: of a call's rows, every so many is kept if activations are rounded; None if they are not.
    """

    def __init__(self, inputs: int, device: torch.device, keep_every: int | None = None) -> None:
        self.rows = 0
        self.hessian_II = None if keep_every else torch.zeros(inputs, inputs, device=device)
        self.largest_I = torch.zeros(inputs, device=device)
        self._total_I = torch.zeros(inputs, device=device)
        self._keep_every = keep_every
        self._kept: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Counts further rows, [..., I]."""
        x_MI = x.reshape(-1, x.shape[-1])
        if len(x_MI) == 0:
            return
        self.rows += len(x_MI)
        absolute_MI = x_MI.abs()
        self._total_I += absolute_MI.sum(0)
        self.largest_I = torch.maximum(self.largest_I, absolute_MI.amax(0))
        if self.hessian_II is not None:
            self.hessian_II.addmm_(x_MI.T, x_MI)
        else:
            self._kept.append(x_MI[:: self._keep_every].clone())

    @property
    def mean_I(self) -> Tensor:
        """The mean of |x| in each column."""
        return self._total_I / max(self.rows, 1)

    def divided(self, scale_I: Tensor) -> "Statistics":
        """The statistics of the same rows if their columns are divided by a scale."""
        other = copy.copy(self)
        other.largest_I, other._total_I = self.largest_I / scale_I, self._total_I / scale_I
        if self.hessian_II is not None:
            other.hessian_II = self.hessian_II / scale_I / scale_I[:, None]
        other._kept = [x_MI / scale_I for x_MI in self._kept]
        return other

    def magnitude(self, weight_OI: Tensor) -> float:
        """The root of Σ |W x|². If no row came, that of the weights' own squares."""
        if self.rows == 0:
            return weight_OI.norm().item()
        if self.hessian_II is not None:
            return ((weight_OI @ self.hessian_II) * weight_OI).sum().clamp(min=0).sqrt().item()
        return sum((x_MI @ weight_OI.T).square().sum().item() for x_MI in self._kept) ** 0.5

    def difference(self, original_OI: Tensor, quantised_OI: Tensor) -> float:
        """The root of Σ |Ŵ x̂ - W x|², where x̂ is x, or x rounded to int8 if activations are rounded."""
        if self.rows == 0 or self.hessian_II is not None:
            return self.magnitude(quantised_OI - original_OI)
        outputs = (rounded_rows(x_MI) @ quantised_OI.T - x_MI @ original_OI.T for x_MI in self._kept)
        return sum(y_MO.square().sum().item() for y_MO in outputs) ** 0.5
