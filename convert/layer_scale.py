"""LayerScale multiplied into the projections that it follows, for an export that needs none."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from convert import weights
from convert.weights import LazyTensor, Params
from stellarbyte.errors import UserError
from stellarbyte_jax.config import ByteConfig

# The gain after each branch, and what ends the branch: experts and shared experts, too, for the gain is linear.
_ENDS = {
    "self_attn_layer_scale.weight": ("self_attn.o_proj.weight", "self_attn.o_proj.bias"),
    "mlp_layer_scale.weight": (
        "mlp.down_proj.weight",
        "mlp.experts.down_proj",
        "mlp.shared_experts.down_proj.weight",
    ),
}


def without_layer_scale(config: ByteConfig, where: str = "the checkpoint") -> ByteConfig:
    """The config of the model once it is folded; raises UserError where there is nothing to fold."""
    if config.layer_scale_init is None:
        raise UserError(f"{where} has no LayerScale (layer_scale_init is null): leave out --fold-layer-scale")
    return dataclasses.replace(config, layer_scale_init=None)


def is_folded(run: ByteConfig, export: ByteConfig) -> bool:
    """Whether an export is of a run with LayerScale, which it has no more; other fields may differ."""
    return run.layer_scale_init is not None and export.layer_scale_init is None


def to_hf_folded(
    params: Params, config: ByteConfig, dtype: str, where: str = "the checkpoint"
) -> dict[str, LazyTensor]:
    """As `weights.to_hf`, the tensors of the same function without LayerScale: of `without_layer_scale(config)`.

    Products are rounded to float32 and then to `dtype`; they are only made when read.
    """
    exact = weights.to_hf(params, config, "float32", where)
    gains = _gains(exact)
    return {
        key: _scaled(exact[key], gains[key], tensor.dtype) if key in gains else tensor
        for key, tensor in weights.to_hf(params, config, dtype, where).items()
        if not key.endswith(tuple(_ENDS))
    }


def _gains(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Key of each tensor to be multiplied -> the gain [D] of its output channels."""
    gains: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        for gain, ends in _ENDS.items():
            if key.endswith(gain):
                gains |= {key.removesuffix(gain) + end: tensor for end in ends}
    return gains


def _scaled(tensor: LazyTensor, gain: LazyTensor, dtype: np.dtype) -> LazyTensor:
    def read() -> np.ndarray:
        values, gain_D = np.asarray(tensor), np.asarray(gain)
        # Output channels are a bias's only axis, and a matrix's last but one.
        return (values * (gain_D if values.ndim == 1 else gain_D[:, None])).astype(dtype, copy=False)

    return LazyTensor(tensor.shape, dtype, read)
