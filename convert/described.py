"""Tells what a config.json or a ByteConfig comes to: the architecture in our words, and the tensors of the model."""

from collections.abc import Mapping
from typing import Any

from convert import config as own
from convert.families import config_json
from convert.families.registry import FAMILIES
from convert.names import Shape, hf_tensors
from stellarbyte.architecture import ByteConfig


def described(mapping: Mapping[str, Any], where: str) -> ByteConfig | None:
    """The architecture by config.json alone, of our own class or of a family that has a place here; None of another.

    Special tokens are not read, because nothing is counted by them, and how weights are quantised is passed over.

    Raises:
        UserError: a field has no place here, or contradicts another.
    """
    fields = {name: value for name, value in mapping.items() if name != "quantization_config"}
    if mapping.get("model_type") == own.MODEL_TYPE:
        return own.from_hf(fields, where)
    family = FAMILIES.get(str(mapping.get("model_type")))
    if family is None:
        return None
    return config_json.from_hf(family, fields, dict(zip(config_json.IDS, range(3), strict=True)), where)


def tensor_shapes(config: ByteConfig, model_type: str = own.MODEL_TYPE) -> dict[str, Shape]:
    """The name -> shape of each parameter, by our names; a family's model has no more than those that it trains."""
    family = FAMILIES.get(model_type)
    absent = () if family is None else family.zeros
    return {tensor.key: tensor.shape for tensor in hf_tensors(config) if not tensor.key.endswith(absent)}
