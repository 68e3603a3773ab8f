"""Multiplies LayerScale into the projections before it, so that an export needs no LayerScale."""

import dataclasses
from collections.abc import Mapping, MutableMapping

import numpy as np

from convert import weights
from convert.casting import cast
from convert.weights import LazyTensor, Params
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError

# The gain after each branch, and the projections that end it; experts are among them, because the gain is linear.
_ENDS = {
    "self_attn_layer_scale.weight": ("self_attn.o_proj.weight", "self_attn.o_proj.bias"),
    "mlp_layer_scale.weight": (
        "mlp.down_proj.weight",
        "mlp.experts.down_proj",
        "mlp.shared_experts.down_proj.weight",
    ),
}


def without_layer_scale(config: ByteConfig, where: str = "the checkpoint") -> ByteConfig:
    """The config of the folded model. Raises UserError if the model has no LayerScale to fold."""
    if config.layer_scale_init is None:
        raise UserError(f"{where} has no LayerScale (layer_scale_init is null): leave out --fold-layer-scale")
    return dataclasses.replace(config, layer_scale_init=None)


def is_folded(run: ByteConfig, export: ByteConfig) -> bool:
    """Whether a run has LayerScale and its export has none; other fields may differ."""
    return run.layer_scale_init is not None and export.layer_scale_init is None


def to_hf_folded(
    params: Params,
    config: ByteConfig,
    dtype: str,
    where: str = "the checkpoint",
    zeros: MutableMapping[str, int] | None = None,
) -> dict[str, LazyTensor]:
    """The tensors of `weights.to_hf` with LayerScale folded in, for a model of `without_layer_scale(config)`.

    Products are rounded to float32, then to `dtype`, when a tensor is read. zeros: as `weights.to_hf` takes it.
    """
    exact = weights.to_hf(params, config, "float32", where)
    gains = _gains(exact)

    def scaled(key: str, tensor: LazyTensor, gain: LazyTensor, dtype: np.dtype) -> LazyTensor:
        def read() -> np.ndarray:
            values, gain_D = np.asarray(tensor), np.asarray(gain)
            # The output channels are the only axis of a bias, and the last but one of a matrix.
            return cast(values * (gain_D if values.ndim == 1 else gain_D[:, None]), dtype, key, where, zeros)

        return LazyTensor(tensor.shape, dtype, read)

    return {
        key: scaled(key, exact[key], gains[key], tensor.dtype) if key in gains else tensor
        for key, tensor in weights.to_hf(params, config, dtype, where, zeros).items()
        if not key.endswith(tuple(_ENDS))
    }


def _gains(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Key of each tensor that is multiplied -> the gain [D] of its output channels."""
    gains: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        for gain, ends in _ENDS.items():
            if key.endswith(gain):
                gains |= {key.removesuffix(gain) + end: tensor for end in ends}
    return gains
