"""AWQ (Lin et al. 2023, arXiv:2306.00978): widens the weights that meet large activations, before it rounds.

The paper multiplies column j of the weights by s_j = (mean|X_j|)^a and divides the activations by it. A group's scale
hardly grows with one column, so this column's error shrinks by about s_j. The a in [0, 1) is that of the smallest
output error; a = 0 is plain rounding. Then each group's range is shrunk if that makes the output error smaller, and the
scale is dropped if the shrunk ranges are better without.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stellarbyte_torch.quantization.calibrator import Calibrator
from stellarbyte_torch.quantization.clipping import best_shrink
from stellarbyte_torch.quantization.grid import QuantizedWeight
from stellarbyte_torch.quantization.scaling_table import Reach
from stellarbyte_torch.quantization.settings import QuantizationSettings
from stellarbyte_torch.quantization.statistics import Statistics

ALPHAS = tuple(step / 20 for step in range(1, 20))
_SMALLEST = 1e-4


def scales(reach: Reach, statistics: Statistics, weights: Sequence[Tensor]) -> list[Tensor]:
    """The paper's scale for each of `ALPHAS`, centred on 1 so that weights and activations keep their size."""
    del weights
    mean = reach.on_source(statistics.mean_I, "mean")
    found = ((mean**alpha).clamp(min=_SMALLEST) for alpha in ALPHAS)
    return [scale / (scale.amax() * scale.amin()).sqrt() for scale in found]


def quantized(
    weight_OI: Tensor, statistics: Statistics, settings: QuantizationSettings, dtype: torch.dtype
) -> QuantizedWeight:
    """The nearest codes on the grids whose ranges are shrunk as far as it helps."""
    shrink_OC = best_shrink(weight_OI, statistics, settings.grid, dtype)
    return settings.grid.rounded(weight_OI, dtype, shrink_OC)


CALIBRATOR = Calibrator(quantized, scales)
