"""Stretched frequencies against transformers' own functions."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from stellarbyte.architecture import RopeScaling
from stellarbyte_jax.model.rope import RotaryEmbedding
from stellarbyte_jax.model.rope_scaling import dynamic_frequencies, rope_frequencies
from test_jax.tiny import relative_error, tiny_config

SCALINGS = [
    RopeScaling("linear", 3.0),
    RopeScaling("yarn", 4.0),
    RopeScaling("yarn", 4.0, original_max_position_embeddings=32, beta_fast=16.0, beta_slow=2.0),
    RopeScaling("yarn", 4.0, truncate=False),
    RopeScaling("yarn", 4.0, mscale=1.0, mscale_all_dim=0.7),
    RopeScaling("yarn", 4.0, attention_factor=1.25),
    RopeScaling("llama3", 8.0, original_max_position_embeddings=64, low_freq_factor=1.0, high_freq_factor=4.0),
]


def config_of(scaling: RopeScaling, **fields):
    fields = {"head_dim": 32, "max_position_embeddings": 128, "rope_theta": 1000.0} | fields
    return tiny_config(position_embedding="rope", rope_scaling=scaling, **fields)


def theirs(config, length=None) -> tuple[np.ndarray, float]:
    scaling = {k: v for k, v in vars(config.rope_scaling).items() if v is not None}
    scaling.setdefault("original_max_position_embeddings", config.max_position_embeddings)
    llama = LlamaConfig(
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters={**scaling, "rope_theta": config.rope_theta},
    )
    inv_freq, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](llama, torch.device("cpu"), seq_len=length)
    return inv_freq.numpy(), factor


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("head_dim", [2, 32])
def test_frequencies_are_those_of_transformers(scaling: RopeScaling, head_dim: int) -> None:
    config = config_of(scaling, head_dim=head_dim)
    expected, factor = theirs(config)
    inv_freq, ours = rope_frequencies(config)
    assert ours == pytest.approx(factor, rel=1e-7)
    assert inv_freq.dtype == np.float32
    np.testing.assert_allclose(inv_freq, expected, rtol=3e-6)


@pytest.mark.parametrize("length", [1, 128, 129, 500])
def test_dynamic_frequencies_are_those_of_transformers(length: int) -> None:
    config = config_of(RopeScaling("dynamic", 4.0))
    np.testing.assert_allclose(dynamic_frequencies(config, length), theirs(config, length)[0], rtol=3e-6)


def test_dynamic_tables_follow_the_longest_position() -> None:
    config = config_of(RopeScaling("dynamic", 4.0))
    plain = RotaryEmbedding(tiny_config(position_embedding="rope", head_dim=32, rope_theta=1000.0))
    stretched = RotaryEmbedding(config)
    short, long = np.arange(128)[None], np.arange(300)[None]
    assert relative_error(stretched(short).q_sin, plain(short).q_sin) < 1e-6
    assert relative_error(stretched(long).q_sin[:, :128], plain(short).q_sin) > 1e-2
    assert config.context_length == 512


def test_yarn_factor_scales_both_tables() -> None:
    plain, scaled = (RotaryEmbedding(config_of(RopeScaling("yarn", 4.0, attention_factor=f))) for f in (1.0, 1.25))
    positions = np.arange(5)[None]
    for name in ("q_cos", "q_sin", "k_cos", "k_sin"):
        assert relative_error(getattr(scaled(positions), name), 1.25 * getattr(plain(positions), name)) < 1e-6
