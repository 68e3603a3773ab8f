"""Loads models from folders in compressed-tensors' format, which `stellarbyte quantize` and others write."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from stellarbyte.errors import UserError, shown
from stellarbyte.patterns import check_patterns
from stellarbyte_torch.configuration_stellarbyte import ByteConfig
from stellarbyte_torch.modeling_stellarbyte import ByteExperts, ByteSparseMoeBlock

# The names of layers that a config may list; a large mixture of experts has some hundred.
_MOST_NAMES = 10_000


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


def check_names(folder: Path, config: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Checks what compressed-tensors would take from a stranger as it is. keys: the names of the folder's tensors.

    Raises:
        UserError: config.json does not say which layers are quantised, or says it by expressions that are invalid or
            too slow.
    """
    where = f"{folder / 'config.json'}: quantization_config"
    quantization = config["quantization_config"]
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        raise UserError(f"{where}.config_groups is {shown(groups)}, expected how each group of layers is quantised")
    named = {f"{where}.config_groups.{name}.targets": group.get("targets") for name, group in groups.items()}
    named[f"{where}.ignore"] = quantization.get("ignore") or []
    patterns: dict[str, tuple[str, str]] = {}
    for field, names in named.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > _MOST_NAMES:
            raise UserError(f"{field} is {shown(names)}, expected up to {_MOST_NAMES} names of layers")
        expressions = [name.removeprefix("re:") for name in names if name.startswith("re:")]
        patterns |= {f"{field}.{number}": (text, text) for number, text in enumerate(expressions)}
    check_patterns(patterns, {key.rpartition(".")[0] for key in keys})


def check_method(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError if Transformers does not know the quant_method of a quantised folder; it would only warn."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    quantization = config["quantization_config"]
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if not isinstance(method, str) or method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise UserError(
            f"{folder / 'config.json'}: quantization_config.quant_method is {shown(method)}, which Transformers does "
            "not know: it is damaged, or made with a newer version"
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Hides the progress bars of compressed-tensors, which has no setting for them, and its warnings.

    It warns, in two forms and once a layer, of settings that do not fit the layers. Their tensors do not fit either
    then, which is told by their names.
    """
    from loguru import logger

    start, library = tqdm.__init__, logging.getLogger("compressed_tensors")
    level = library.level
    tqdm.__init__ = lambda self, *args, **options: start(self, *args, **{**options, "disable": True})
    library.setLevel(logging.ERROR)
    logger.disable("compressed_tensors")
    try:
        yield
    finally:
        tqdm.__init__ = start
        library.setLevel(level)
        logger.enable("compressed_tensors")


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
