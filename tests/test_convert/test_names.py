import numpy as np
import pytest
import torch
from flax import nnx

from convert import names, weights
from convert.config import to_hf
from stellarbyte_jax.training.state import abstract_model
from stellarbyte_torch import ByteConfig, ByteModel
from test_convert.models import describe, grid, tiny


@pytest.mark.parametrize("config", grid(), ids=describe)
def test_table_lists_exactly_the_parameters_that_jax_has(config):
    leaves = weights.flatten(nnx.to_pure_dict(abstract_model(config)[1]))
    assert {path: leaf.shape for path, leaf in leaves} == names.jax_shapes(config)


@pytest.mark.parametrize("config", grid(), ids=describe)
def test_table_lists_exactly_the_tensors_that_transformers_saves_in_its_order(config):
    with torch.device("meta"):
        model = ByteModel(ByteConfig(**to_hf(config, "float32")))
    saved = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del saved["lm_head.weight"]  # save_pretrained leaves it out: it is the embedding
    assert list(saved.items()) == [(tensor.key, tensor.shape) for tensor in names.hf_tensors(config)]


def test_no_two_tensors_share_a_key_or_a_place():
    tensors = names.hf_tensors(tiny(xpos_learnable=True, num_hidden_layers=3))
    assert len({t.key for t in tensors}) == len({(t.path, t.layer) for t in tensors}) == len(tensors)


def test_shapes_hold_as_many_values_on_both_sides():
    config = tiny(xpos_learnable=True, num_hidden_layers=3)
    jax_values = sum(np.prod(shape) for shape in names.jax_shapes(config).values())
    assert jax_values == sum(np.prod(tensor.shape) for tensor in names.hf_tensors(config))
