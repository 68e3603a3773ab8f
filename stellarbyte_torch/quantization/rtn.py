"""Plain rounding ("round to nearest"): each weight takes the nearest code. What every method is measured against."""

import torch
from torch import Tensor

from stellarbyte_torch.quantization.calibrator import Calibrator
from stellarbyte_torch.quantization.grid import QuantizedWeight
from stellarbyte_torch.quantization.settings import QuantizationSettings
from stellarbyte_torch.quantization.statistics import Statistics


def quantized(
    weight_OI: Tensor, statistics: Statistics, settings: QuantizationSettings, dtype: torch.dtype
) -> QuantizedWeight:
    """The nearest codes; the statistics are not needed."""
    del statistics
    return settings.grid.rounded(weight_OI, dtype)


CALIBRATOR = Calibrator(quantized)
