import numpy as np
import pytest
import torch
from flax import nnx

from convert import names, weights
from convert.config import to_hf
from stellarbyte_jax.planning.parameters import ParameterCounter
from stellarbyte_jax.training.state import abstract_model
from stellarbyte_torch import ByteConfig, ByteModel
from test_convert.switches import grid

every_config = pytest.mark.parametrize("config", grid().values(), ids=grid().keys())


@every_config
def test_table_lists_exactly_the_parameters_that_jax_has(config):
    leaves = weights.flatten(nnx.to_pure_dict(abstract_model(config)[1]))
    assert {path: leaf.shape for path, leaf in leaves} == names.jax_shapes(config)


@every_config
def test_table_lists_exactly_the_tensors_that_transformers_saves_in_its_order(config):
    with torch.device("meta"):
        model = ByteModel(ByteConfig(**to_hf(config, "float32")))
    saved = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del saved["lm_head.weight"]  # save_pretrained leaves it out: it is the embedding
    assert list(saved.items()) == [(tensor.key, tensor.shape) for tensor in names.hf_tensors(config)]


@every_config
def test_no_two_tensors_share_a_key_or_a_place(config):
    tensors = names.hf_tensors(config)
    assert len({t.key for t in tensors}) == len({(t.path, t.layer) for t in tensors}) == len(tensors)


@every_config
def test_shapes_hold_as_many_values_on_both_sides_but_for_what_is_pruned(config):
    jax_values = sum(np.prod(shape) for shape in names.jax_shapes(config).values())
    widths = config.intermediate_sizes
    pruned = 3 * config.hidden_size * sum(max(widths) - width for width in widths)
    if config.pruned_heads is not None:
        group = config.num_attention_heads // config.num_key_value_heads
        for gone in config.pruned_heads:
            groups = sum(all(k * group + g in gone for g in range(group)) for k in range(config.num_key_value_heads))
            # q_proj and o_proj; k_proj and v_proj; and the biases of q, k and v.
            channels = (len(gone) + groups) * config.head_dim
            pruned += 2 * channels * config.hidden_size
            pruned += (channels + groups * config.head_dim) * config.attention_bias
    there = sum(np.prod(tensor.shape) for tensor in names.hf_tensors(config))
    assert jax_values == pruned + there
    assert ParameterCounter(config).total == there
