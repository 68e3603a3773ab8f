"""What a method of quantisation consists of: each has a file of its own, which holds one of these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stellarbyte_torch.quantization.grid import QuantizedWeight
from stellarbyte_torch.quantization.scaling_table import Reach
from stellarbyte_torch.quantization.settings import QuantizationSettings
from stellarbyte_torch.quantization.statistics import Statistics

# A weight [O, I] in float32, the statistics of its inputs, and the dtype of its scales -> the quantised weight.
Quantized = Callable[[Tensor, Statistics, QuantizationSettings, torch.dtype], QuantizedWeight]
# A source, the statistics of what its consumers read, and their weights -> scales of its channels to try.
Scales = Callable[[Reach, Statistics, Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Calibrator:
    """A method of quantisation.

    quantized: chooses the codes of a weight. scales: the scales that may be folded before; the best is taken, or none
    if plain rounding is better without. in_turn: whether a layer is calibrated on what the quantised layers before it
    in its block put out, and not on what the original ones do.
    """

    quantized: Quantized
    scales: Scales | None = None
    in_turn: bool = False
