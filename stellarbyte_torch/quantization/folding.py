"""Divides a source's channels by a scale and multiplies it into every consumer, so that the model stays the same."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stellarbyte_torch.quantization.experts import Linear, is_router
from stellarbyte_torch.quantization.scaling_table import Reach


def fold(reach: Reach, scale: Tensor, layer: nn.Module, linears: Mapping[str, Linear]) -> None:
    """Divides the source by the scale and multiplies the consumers by it, in place.

    scale: positive, one number for each channel of the source; see `exact` for what a norm on disk can hold.
    """
    if reach.source in linears:
        source = linears[reach.source]
        source.weight.div_(scale[:, None])
        if source.bias is not None:
            source.bias.div_(scale)
    else:
        _norm(reach, layer).div_(scale)
    scale_I = reach.on_inputs(scale)
    for name in reach.consumers:
        linears[name].weight.mul_(scale_I)


def exact(reach: Reach, scale: Tensor, layer: nn.Module, linears: Mapping[str, Linear], dtype: torch.dtype) -> Tensor:
    """The nearest scale to this one that folding carries out exactly when the model is saved in `dtype`.

    A linear layer that is divided by powers of two has the same codes as before, and its error stays the same to the
    last bit. A router among the consumers, which stays in floats, is not rounded a second time by them. A norm takes
    the nearest weight that `dtype` holds, and its consumers multiply by the quotient that results.
    """
    if reach.source in linears or (dtype != torch.float32 and any(is_router(name) for name in reach.consumers)):
        return torch.exp2(scale.log2().round())
    if dtype == torch.float32:
        return scale
    weight = _norm(reach, layer)
    quotient = weight / (weight / scale).to(dtype).float()
    return torch.where(quotient.isfinite() & (quotient > 0), quotient, scale)


def _norm(reach: Reach, layer: nn.Module) -> Tensor:
    return layer.get_submodule(reach.source).get_parameter("weight").data
