"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): moves the outliers of activations into the weights behind them.

Weights and activations are both rounded to int8. Activations have a few channels that are far larger than the others,
and one scale a token must reach them. The paper divides the activations' channel j by

    s_j = max|X_j|^a / max|W_j|^(1-a)

and multiplies column j of the weights by it, where the maxima go over tokens and over all rows of all weights that read
the channel. Here a is the best of several, or nothing is smoothed if that is better.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stellarbyte_torch.quantization.calibrator import Calibrator
from stellarbyte_torch.quantization.rtn import quantized
from stellarbyte_torch.quantization.scaling_table import Reach
from stellarbyte_torch.quantization.statistics import Statistics

# The paper takes 0.5, and up to 0.9 where activations have strong outliers.
ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SMALLEST = 1e-5


def scales(reach: Reach, statistics: Statistics, weights: Sequence[Tensor]) -> list[Tensor]:
    """The paper's scale for each of `ALPHAS`."""
    largest_I = torch.stack([weight_OI.abs().amax(0) for weight_OI in weights]).amax(0)
    of_weights = reach.on_source(largest_I, "amax").clamp(min=_SMALLEST)
    of_inputs = reach.on_source(statistics.largest_I, "amax").clamp(min=_SMALLEST)
    return [of_inputs**alpha / of_weights ** (1 - alpha) for alpha in ALPHAS]


CALIBRATOR = Calibrator(quantized, scales)
