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

    Quantised layers are chosen from float32 and lose nothing by a scale. What stays a float is rounded once more: a
    norm takes the nearest weight that `dtype` holds, and its consumers multiply by the quotient that results. A router
    and a bias cannot be made up for, so where there is one the scale is made of powers of two.
    """
    if dtype == torch.float32:
        return scale
    has_bias = reach.source in linears and linears[reach.source].bias is not None
    if has_bias or any(is_router(name) for name in reach.consumers):
        return torch.exp2(scale.log2().round())
    if reach.source in linears:
        return scale
    weight = _norm(reach, layer)
    quotient = weight / (weight / scale).to(dtype).float()
    return torch.where(quotient.isfinite() & (quotient > 0), quotient, scale)


def _norm(reach: Reach, layer: nn.Module) -> Tensor:
    return layer.get_submodule(reach.source).get_parameter("weight").data
