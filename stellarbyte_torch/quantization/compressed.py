"""The format of a quantised folder: compressed-tensors', which Transformers and vLLM read without any code of ours."""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
)
from torch import Tensor

from stellarbyte_torch.quantization.grid import QuantizedWeight
from stellarbyte_torch.quantization.settings import QuantizationSettings

HEAD, EMBEDDING = "lm_head", "model.embed_tokens"

# Codes beside int8 activations are stored as they are; all others are packed densely into int32.
_PLAIN, _PACKED = "int-quantized", "pack-quantized"


def config_fields(settings: QuantizationSettings, left_out: Iterable[str]) -> dict[str, Any]:
    """The quantization_config of config.json.

    left_out: the names of linear layers that are not quantised.
    """
    assert not (settings.rounds_activations and settings.include_embeddings), "an embedding has no inputs to round"
    config = QuantizationConfig(
        config_groups={"group_0": _scheme(settings)},
        format=_format(settings),
        quantization_status=QuantizationStatus.COMPRESSED,
        # A tied head is no tensor of the folder, but a module of the model.
        ignore=sorted({*left_out, *(() if settings.include_head else (HEAD,))}),
    )
    fields: dict[str, Any] = config.model_dump(mode="json")
    fields["version"] = version("compressed-tensors")
    # As they are, compressed-tensors 0.20 loads no packed zero points, and Transformers 5.24 no packed embedding.
    if not settings.symmetric or settings.include_embeddings:
        fields["dequantize"] = True
    return fields


def _scheme(settings: QuantizationSettings) -> QuantizationScheme:
    """How the weights of quantised modules are stored, and what happens to their inputs."""
    weights = QuantizationArgs(
        num_bits=settings.bits,
        symmetric=settings.symmetric,
        strategy="channel" if settings.group_size is None else "group",
        group_size=settings.group_size,
    )
    rounded = QuantizationArgs(num_bits=8, strategy="token", dynamic=True)
    return QuantizationScheme(
        targets=["Linear", "Embedding"] if settings.include_embeddings else ["Linear"],
        weights=weights,
        input_activations=rounded if settings.rounds_activations else None,
        format=_format(settings),
    )


def _format(settings: QuantizationSettings) -> str:
    return _PLAIN if settings.rounds_activations else _PACKED


def stored(tensors: Mapping[str, Tensor | QuantizedWeight], settings: QuantizationSettings) -> dict[str, Tensor]:
    """The tensors of a block as the folder's files hold them, by the names that compressed-tensors reads."""
    scheme, compressor = _scheme(settings), BaseCompressor.get_value_from_registry(_format(settings))
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            found[key] = tensor.contiguous()
            continue
        assert key.endswith(".weight"), key
        parts = _parts(tensor, packed=not settings.rounds_activations)
        read = compressor.decompress(dict(parts), scheme)
        # What the library makes of the parts is what was measured, to the last bit.
        assert torch.equal(read["weight"], tensor.dequantized()), key
        found |= {f"{key.removesuffix('weight')}{name}": part for name, part in parts.items()}
    return found


def restored(found: Mapping[str, Tensor], settings: QuantizationSettings) -> dict[str, Tensor | QuantizedWeight]:
    """The inverse of `stored`."""
    tensors: dict[str, Tensor | QuantizedWeight] = {}
    for name, tensor in found.items():
        stem, _, part = name.rpartition(".")
        scale = found.get(f"{stem}.weight_scale")
        if scale is None:
            tensors[name] = tensor
        elif part == "weight":
            tensors[name] = settings.grid.with_codes(tensor, scale, None)
        elif part == "weight_packed":
            O, I = found[f"{stem}.weight_shape"].tolist()  # noqa: E741 - the legend's letters
            codes_OI = unpack_from_int32(tensor, settings.bits, torch.Size((O, I)))
            zero = found.get(f"{stem}.weight_zero_point")
            if zero is not None:
                zero = unpack_from_int32(zero, settings.bits, torch.Size(scale.shape), packed_dim=0).contiguous()
            tensors[f"{stem}.weight"] = settings.grid.with_codes(codes_OI, scale, zero)
    return tensors


def _parts(weight: QuantizedWeight, *, packed: bool) -> dict[str, Tensor]:
    """The tensors that stand for a weight. The library's own `compress` would make codes anew, from rounded floats."""
    if not packed:
        return {"weight": weight.codes.contiguous(), "weight_scale": weight.scale.contiguous()}
    parts = {
        "weight_packed": pack_to_int32(weight.codes, weight.bits),
        "weight_scale": weight.scale.contiguous(),
        "weight_shape": torch.tensor(weight.codes.shape),
    }
    if weight.zero_point is not None:
        parts["weight_zero_point"] = pack_to_int32(weight.zero_point, weight.bits, packed_dim=0)
    return parts
