"""Checks what a quantised folder's config.json says of its codes against compressed-tensors' rules and the codes."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from stellarbyte.errors import UserError, shown
from stellarbyte.lora_values import is_whole
from stellarbyte.safetensors_header import TensorHeader, read_header

_FIX = "fetch the folder again, or quantise the model again"
_MOST_BITS = 16
# What of a scheme says how numbers are rounded.
_ROUNDED = ("weights", "input_activations", "output_activations")
# Inputs and outputs that are rounded by scales which no call finds anew, and the tensors of these.
_STATIC = {"input_activations": "input_scale", "output_activations": "output_scale"}


def check_scheme(folder: Path, config: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Checks the quantization_config of a folder in compressed-tensors' format. files: tensor name -> file name.

    Transformers would fail on most of this in words that name neither the field nor the folder.

    Raises:
        UserError: a field has a value that compressed-tensors refuses, or one that its codes contradict.
    """
    where = f"{folder / 'config.json'}: quantization_config"
    quantization = dict(config["quantization_config"])
    groups = quantization["config_groups"]
    for name, group in groups.items():
        _check_numbers(f"{where}.config_groups.{name}", group)
    _check_by_library(where, quantization)
    headers = {key: header for name in set(files.values()) for key, header in read_header(folder / name).items()}
    for layer in sorted(key.removesuffix(".weight_scale") for key in headers if key.endswith(".weight_scale")):
        contradictions = [
            f"{where}.config_groups.{name}.{contradiction}"
            for name, group in groups.items()
            if (contradiction := next(_contradictions(folder, files, headers, layer, group), None))
        ]
        # With several groups, that of the layer is one that its codes fit.
        if len(contradictions) == len(groups):
            raise UserError(f"{contradictions[0]}: {_FIX}")


def _check_numbers(where: str, group: Mapping[str, Any]) -> None:
    """Raises UserError for numbers that compressed-tensors compares, or makes tensors of, before it looks at them."""
    for part in _ROUNDED:
        rounded = group.get(part)
        if rounded is not None and not isinstance(rounded, dict):
            raise UserError(f"{where}.{part} is {shown(rounded)}, expected a mapping or null: {_FIX}")
        bits, size = (rounded or {}).get("num_bits", 8), (rounded or {}).get("group_size")
        if not is_whole(bits, 1) or bits > _MOST_BITS:
            raise UserError(
                f"{where}.{part}.num_bits is {shown(bits)}, expected a number from 1 to {_MOST_BITS}: {_FIX}"
            )
        if size is not None and size != -1 and not is_whole(size, 1):
            raise UserError(
                f"{where}.{part}.group_size is {shown(size)}, expected a number of channels, from 1, or -1 for "
                f"all of them: {_FIX}"
            )


def _check_by_library(where: str, quantization: dict[str, Any]) -> None:
    """Raises UserError for a field that compressed-tensors refuses."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
    from pydantic import BaseModel, ValidationError

    def check(kind: type[BaseModel], fields: Any, beginning: str) -> None:
        try:
            kind.model_validate(fields)
            return
        except ValidationError as error:
            first = error.errors()[0]
            # Behind the name of a field that may be of several kinds stands the kind that was tried.
            names = (str(name) for name in first["loc"] if str(name).replace("_", "").isalnum())
            field, value, why = (
                ".".join([beginning, *names]),
                first["input"],
                first["msg"].removeprefix("Value error, "),
            )
        except (NotImplementedError, TypeError, ValueError) as error:  # from its own validators
            field, value, why = beginning, fields, str(error)
        why = why.partition("\n")[0]
        raise UserError(f"{field} is {shown(value)}, which compressed-tensors refuses ({why}): {_FIX}")

    # One after the other: together, an error tells of each kind of group that one could be.
    groups = quantization["config_groups"]
    for name, group in groups.items():
        check(QuantizationScheme, group, f"{where}.config_groups.{name}")
    known = quantization.keys() & QuantizationConfig.model_fields.keys()
    rest = {name: quantization[name] for name in known}
    check(QuantizationConfig, {**rest, "config_groups": {}}, where)


def _contradictions(
    folder: Path, files: Mapping[str, str], headers: Mapping[str, TensorHeader], layer: str, group: Mapping[str, Any]
) -> Iterator[str]:
    """What of a group's scheme is not so by a layer's tensors: the field, its value, and what is there."""
    for part, scale in _STATIC.items():
        rounded = group.get(part)
        if rounded and not rounded.get("dynamic") and f"{layer}.{scale}" not in headers:
            yield f"{part}.dynamic is {shown(rounded.get('dynamic', False))}, but there is no {layer}.{scale}"
    weights = group.get("weights")
    if weights is None:
        yield f"weights is null, but {layer} has codes"
        return
    if str(weights.get("type", "int")).lower() != "int":
        return  # none of ours; Transformers tells of what does not fit
    packed, bits = headers.get(f"{layer}.weight_packed"), weights.get("num_bits", 8)
    if packed is not None and f"{layer}.weight_shape" in headers:
        inputs = _inputs(folder / files[f"{layer}.weight_shape"], layer)
        words = packed.shape[-1] if packed.shape else 0
        if words != math.ceil(inputs * bits / 32):
            yield f"weights.num_bits is {bits}, but {layer} has {words} words of 32 bits for its {inputs} inputs"
    elif (plain := headers.get(f"{layer}.weight")) is not None and len(plain.shape) == 2:
        inputs = plain.shape[1]
    else:
        return
    size, scales = weights.get("group_size"), headers[f"{layer}.weight_scale"].shape
    wanted = 1 if size in (None, -1) else inputs / size
    by_row = len(scales) == 2 and str(weights.get("strategy", "group")).lower() in ("group", "channel")
    if by_row and scales[1] != wanted:
        yield f"weights.group_size is {shown(size)}, but {layer} has {scales[1]} scales a row of {inputs} inputs"
    if not weights.get("symmetric", True) and f"{layer}.weight_zero_point" not in headers:
        yield f"weights.symmetric is {shown(weights['symmetric'])}, but there is no {layer}.weight_zero_point"


def _inputs(path: Path, layer: str) -> int:
    """The number of a layer's inputs by its weight_shape; 0 if that is no shape."""
    with safe_open(path, framework="pt") as file:
        shape = file.get_tensor(f"{layer}.weight_shape").flatten().tolist()
    return int(shape[1]) if len(shape) == 2 else 0
