"""Transformers' settings for loading a model whose linear layers torchao computes with int8 weights."""

from typing import Any, Literal

Int8 = Literal["int8", "int8-dynamic"]


def torchao_settings(kind: Int8) -> Any:
    """The settings under which each row of a weight becomes int8 with a scale.

    kind: int8 rounds weights alone; int8-dynamic rounds the layers' inputs as well, each token by a scale of its own.

    Raises:
        ModuleNotFoundError: torchao is not installed.
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig() if kind == "int8" else Int8DynamicActivationInt8WeightConfig())
