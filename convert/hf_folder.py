"""Reads a model's folder, ours or a stock one, as a config and tensors by our own keys."""

from dataclasses import dataclass
from pathlib import Path

from convert import config as hf_config
from convert import given_weights, shards
from convert.families.family import Family
from convert.families.tensors import from_stock
from convert.weights import LazyTensor
from stellarbyte.architecture import ByteConfig


@dataclass(frozen=True)
class HFModel:
    """The model in a Hugging Face folder.

    Attributes:
        config: its config.
        tensors: our key -> tensor. A value is read, and refused if it is not finite, when it is needed.
        family: the family of a stock model; None if the model is ours.
    """

    config: ByteConfig
    tensors: dict[str, LazyTensor]
    family: Family | None


def read(folder: Path) -> HFModel:
    """The model in a folder that `to-hf` or save_pretrained wrote.

    Raises:
        UserError: the folder has an architecture that has no place here; or weights that are missing, unknown,
            misshapen or broken.
    """
    where = str(folder)
    config, family = hf_config.read_hf(folder), hf_config.family_of(folder)
    tensors = given_weights.one_of_tied(shards.read(folder), config, where)
    if family is not None:
        tensors = from_stock(tensors, config, family, where)
    return HFModel(config, given_weights.finite(tensors, where), family)
