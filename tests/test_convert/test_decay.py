"""Weight decay is for matrices, in every architecture, and Hugging Face's Trainer decays the same ones."""

import functools

import jax
import numpy as np
import pytest
import torch
from transformers import Trainer

from convert import names
from convert.config import to_hf
from stellarbyte_jax.config import ByteConfig, LoRAConfig, OptimizerConfig
from stellarbyte_jax.training.optimizer import make_optimizer
from stellarbyte_jax.training.param_traits import Trait, param_traits, trained_params
from stellarbyte_jax.training.state import abstract_model
from stellarbyte_torch import ByteConfig as TorchByteConfig
from stellarbyte_torch import ByteModel as TorchByteModel
from test_convert.switches import grid

# Trainer finds what is no matrix by its name, and knows neither of these two.
UNKNOWN_TO_TRAINER = ("zeta", "layer_scale")


@functools.cache
def decaying(config: ByteConfig, lora: LoRAConfig | None = None) -> dict[names.Path, bool]:
    """Of the parameters that are trained: with `lora`, the adapters."""
    params = trained_params(abstract_model(config, lora=lora)[1], lora)
    leaves, _ = jax.tree_util.tree_flatten_with_path(param_traits(params))
    return {tuple(key.key for key in path): leaf.decays for path, leaf in leaves}


@pytest.mark.parametrize("config", grid().values(), ids=grid())
def test_matrices_decay_and_nothing_else(config: ByteConfig) -> None:
    # A matrix has two axes or more beside that of the layers.
    expected = {row.path: len(row.axes) >= 2 for row in names.rows(config)}
    assert decaying(config) == expected
    adapted = decaying(config, LoRAConfig(r=2, target_modules="all-linear"))
    assert {path[-1] for path in adapted} == {"lora_A", "lora_B"} and all(adapted.values())


@pytest.mark.parametrize("config", grid().values(), ids=grid())
def test_hugging_face_trainer_decays_the_same(config: ByteConfig) -> None:
    ours = decaying(config)
    with torch.device("meta"):
        model = TorchByteModel(TorchByteConfig(**to_hf(config, "float32")))
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    for tensor in names.hf_tensors(config):
        if not any(name in tensor.key for name in UNKNOWN_TO_TRAINER):
            assert (tensor.key in theirs) == ours[tensor.path], tensor.key


def test_one_update_moves_what_decays_by_the_decay_alone() -> None:
    config = next(iter(grid().values()))
    params = {"/".join(path): np.ones(2, np.float32) for path in decaying(config)}
    mask = {"/".join(path): yes for path, yes in decaying(config).items()}
    after = []
    for weight_decay in (0.0, 0.5):
        optimizer = make_optimizer(
            OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=weight_decay),
            1,
            {name: Trait(decays=yes) for name, yes in mask.items()},
        )
        after.append(optimizer.update(jax.tree.map(np.ones_like, params), optimizer.init(params), params)[0])
    assert {name: bool((after[0][name] != after[1][name]).all()) for name in params} == mask
