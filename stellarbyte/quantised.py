"""Tells by a model's config.json whether its weights are quantised."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stellarbyte.errors import UserError, shown


def is_quantised(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that the weights are quantised, in whichever format."""
    return config.get("quantization_config") is not None


def check_not_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError if a folder's config.json says that its weights are quantised."""
    if is_quantised(config):
        quantization = config["quantization_config"]
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise UserError(
            f"{folder} is quantised already (quant_method {shown(method)}), and rounding it again would lose more: "
            "name the folder of floats that it was made from"
        )
