"""Loads models from folders in compressed-tensors' format, which `stellarbyte quantize` and others write."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from stellarbyte.errors import UserError
from stellarbyte_torch.configuration_stellarbyte import ByteConfig
from stellarbyte_torch.modeling_stellarbyte import ByteExperts, ByteSparseMoeBlock


def is_compressed(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that the weights are in compressed-tensors' format."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, dict) and quantization.get("quant_method") == "compressed-tensors"


def check_can_be_read(folder: Path) -> None:
    """Raises UserError, with the command to run, if compressed-tensors is not installed."""
    if find_spec("compressed_tensors") is None:
        raise UserError(
            f"{folder} is quantised, and compressed-tensors, which reads it, is not installed: "
            "pip install 'stellarbyte[quantization]'"
        )


@contextmanager
def without_bars() -> Iterator[None]:
    """Hides the progress bars of compressed-tensors, which has no setting for them."""
    start = tqdm.__init__
    tqdm.__init__ = lambda self, *args, **options: start(self, *args, **{**options, "disable": True})
    try:
        yield
    finally:
        tqdm.__init__ = start


def decompress(model: Any, *, dequantised: bool) -> None:
    """Makes floats of a loaded model's codes now; Transformers would at the first call, until when it has no weights.

    dequantised: whether the model becomes one of floats that trains and saves like any other. Otherwise its layers
    round their inputs to int8 if the folder says so.
    """
    from compressed_tensors.compressors import decompress_module

    for module in model.modules():
        if hasattr(module, "quantization_scheme"):
            decompress_module(module, leave_decompressed=not dequantised)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:  # it is gone where the folder tells Transformers to make floats
        quantizer.compressor.remove_decompression_hook(model)
    if not dequantised:
        return
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    for block in [module for module in model.modules() if isinstance(module, ByteSparseMoeBlock)]:
        block.experts = _stacked(block.experts, model.config)
    model.requires_grad_()


def _stacked(apart: Any, config: ByteConfig) -> ByteExperts:
    """The experts as a model of floats has them, stacked, of those that are linear layers."""
    with torch.device("meta"):
        experts = ByteExperts(config)
    gate_up = [torch.cat((expert.gate_proj.weight, expert.up_proj.weight)) for expert in apart]
    experts.gate_up_proj = torch.nn.Parameter(torch.stack(gate_up))
    experts.down_proj = torch.nn.Parameter(torch.stack([expert.down_proj.weight for expert in apart]))
    return experts
