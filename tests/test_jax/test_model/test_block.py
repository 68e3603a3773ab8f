"""The residual schemes against their formulas, and what training drops."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte_jax.model.block import Block
from stellarbyte_jax.model.call_context import CallContext, LayerContext
from stellarbyte_jax.model.causal_lm import ByteDecoder
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.rope import RotaryEmbedding
from test_jax.tiny import random_tokens, relative_error, tiny_config, tiny_model

SCHEMES: list[dict[str, Any]] = [
    {"residual": residual, "parallel_residual": parallel, **more}
    for residual in ("pre_norm", "deepnorm")
    for parallel in (False, True)
    for more in ({}, {"layer_scale_init": 0.3})
    if not (residual == "deepnorm" and more)
]

NOTHING = LayerContext(None, None, None)


def block_of(**fields: Any) -> tuple[Block, CallContext, jax.Array]:
    config = tiny_config(num_hidden_layers=3, **fields)
    block = Block(config, execution=Execution(attention_kernel="chunked"), rngs=nnx.Rngs(0))
    x_BTD = jax.random.normal(jax.random.key(1), (3, 7, config.hidden_size))
    return block, CallContext(RotaryEmbedding(config)(jnp.arange(7)[None]), None, None, False), x_BTD


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_blocks_are_their_formula(scheme: dict[str, Any]) -> None:
    block, context, x = block_of(**scheme)
    gain = scheme.get("layer_scale_init", 1.0)
    alpha = (2 * 3) ** 0.25

    def attend(h):
        return gain * block.self_attn(h, context, NOTHING, None)[0]

    def feed(h):
        return gain * block.mlp(h)

    if scheme["residual"] == "pre_norm" and scheme["parallel_residual"]:
        h = block.input_layernorm(x)
        expected = x + attend(h) + feed(h)
    elif scheme["residual"] == "pre_norm":
        y = x + attend(block.input_layernorm(x))
        expected = y + feed(block.post_attention_layernorm(y))
    elif scheme["parallel_residual"]:
        expected = block.post_feedforward_layernorm(alpha * x + attend(x) + feed(x))
    else:
        y = block.post_attention_layernorm(alpha * x + attend(x))
        expected = block.post_feedforward_layernorm(alpha * y + feed(y))
    assert relative_error(block(x, context, NOTHING).x_BTD, expected) < 1e-6


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_blocks_have_the_norms_of_their_scheme_and_no_others(scheme: dict[str, Any]) -> None:
    block, _, _ = block_of(**scheme)
    norms = {name for name in nnx.to_pure_dict(nnx.state(block)) if "norm" in name}
    expected = {
        ("pre_norm", False): {"input_layernorm", "post_attention_layernorm"},
        ("pre_norm", True): {"input_layernorm"},
        ("deepnorm", False): {"post_attention_layernorm", "post_feedforward_layernorm"},
        ("deepnorm", True): {"post_feedforward_layernorm"},
    }
    assert norms == expected[scheme["residual"], scheme["parallel_residual"]]


def test_initial_gains_are_those_of_the_schemes() -> None:
    wide = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 1.0}
    for residual, inner, output in (("pre_norm", 1.0, (2 * 3) ** -0.5), ("deepnorm", (8 * 3) ** -0.25, None)):
        block, _, _ = block_of(residual=residual, **wide)
        output = inner if output is None else output
        stddevs = {
            "q_proj": (block.self_attn.q_proj, 1.0),
            "k_proj": (block.self_attn.k_proj, 1.0),
            "v_proj": (block.self_attn.v_proj, inner),
            "o_proj": (block.self_attn.o_proj, output),
            "gate_proj": (block.mlp.gate_proj, inner),
            "up_proj": (block.mlp.up_proj, inner),
            "down_proj": (block.mlp.down_proj, output),
        }
        for name, (linear, expected) in stddevs.items():
            assert float(linear.kernel[...].std()) == pytest.approx(expected, rel=0.05), name


def test_drop_path_drops_a_whole_branch_of_a_row() -> None:
    block, context, x = block_of(drop_path_rate=0.5, parallel_residual=True)
    h = block.input_layernorm(x)
    attended, fed = block.self_attn(h, context, NOTHING, None)[0], block.mlp(h)
    seen = set()
    for seed in range(6):
        layer = LayerContext(jnp.asarray(0.5), jax.random.key(seed), None)
        added = block(x, context, layer).x_BTD - x
        for row in range(x.shape[0]):
            matches = [
                (a, f)
                for a in (0, 2)
                for f in (0, 2)
                if relative_error(added[row] + 1e-9, a * attended[row] + f * fed[row] + 1e-9) < 1e-4
            ]
            assert len(matches) == 1, "each branch is there twice as strong, or not at all"
            seen.add(matches[0])
    assert len(seen) == 4, "the branches draw apart"


def test_rates_rise_with_depth_from_nothing() -> None:
    decoder = tiny_model(tiny_config(num_hidden_layers=4, drop_path_rate=0.3)).model
    rates = decoder._per_layer(jax.random.key(0), None).drop_path_rate
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3], rtol=1e-6)
    assert decoder._per_layer(None, None).drop_path_rate is None
    alone = tiny_model(tiny_config(num_hidden_layers=1, drop_path_rate=0.3)).model
    assert alone._per_layer(jax.random.key(0), None).drop_path_rate.tolist() == [0]


DROPPING: list[dict[str, Any]] = [
    {"hidden_dropout": 0.3},
    {"attention_dropout": 0.3},
    {"residual_dropout": 0.3},
    {"drop_path_rate": 0.6},
]


@pytest.mark.parametrize("rates", DROPPING, ids=str)
def test_dropping_is_drawn_from_the_key_and_from_nothing_else(rates: dict[str, Any]) -> None:
    config = tiny_config(**rates)
    model = tiny_model(config)
    ids = random_tokens(config, 4, 9)

    @jax.jit
    def forward(key):
        return model(ids, dropout_key=key, training=True).logits

    first, again, other = forward(jax.random.key(1)), forward(jax.random.key(1)), forward(jax.random.key(2))
    calm = jax.jit(lambda: model(ids).logits)()
    assert (first == again).all()
    assert relative_error(first, other) > 1e-3
    assert relative_error(first, calm) > 1e-3
    off = dataclasses.replace(config, **dict.fromkeys(rates, 0.0))
    without = tiny_model(off)
    assert (jax.jit(lambda: without(ids).logits)() == calm).all(), "without a key nothing is dropped"


def test_pruned_heads_have_no_influence() -> None:
    config = tiny_config(pruned_heads=((1, 2), ()))
    model = tiny_model(config)
    ids = random_tokens(config, 2, 9)
    H = config.head_dim
    graphdef, state = nnx.split(model)
    params = nnx.to_pure_dict(state)
    kernel = params["model"]["layers"]["self_attn"]["o_proj"]["kernel"]
    noisy = kernel.at[0, H : 3 * H].set(100.0)
    params["model"]["layers"]["self_attn"]["o_proj"]["kernel"] = noisy
    read = jax.jit(lambda params: nnx.merge(graphdef, params)(ids).logits)
    logits = read(nnx.to_pure_dict(state))
    assert (read(params) == logits).all()
    whole = tiny_model(dataclasses.replace(config, pruned_heads=None))
    assert relative_error(jax.jit(lambda: whole(ids).logits)(), logits) > 1e-2


def test_no_positions_means_no_tables() -> None:
    decoder = ByteDecoder(tiny_config(position_embedding="none"), rngs=nnx.Rngs(0))
    assert decoder.rotary_emb is None
