"""The whole model: what each token may depend on (law 1), how it starts, and what its parameters say of themselves."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte_jax import ByteModel
from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.sharding import LOGICAL_AXIS_RULES
from stellarbyte_jax.training.state import abstract_model, init_params
from test_jax.tiny import random_tokens, relative_error, segments, tiny_config, tiny_model, tiny_params
from tiers import short_tier

# Every token of a row is another one, so that a row of the embedding is the input at one position.
VOCAB = 256


def reach(config: ByteConfig, T: int, position_ids=None, segment_ids=None, cache: KVCache | None = None) -> np.ndarray:
    """[T, S]: the largest |d logits[t] / d embedding[s]|, the logits weighted at random."""
    graphdef, _ = nnx.split(tiny_model(config))
    ids = np.random.default_rng(0).permutation(VOCAB)[:T].astype(np.int32)[None]
    # A random direction for each position: the sum of all logits could cancel.
    direction_TV = np.random.default_rng(1).normal(size=(T, VOCAB)).astype(np.float32)

    @jax.jit
    def gradients(params):
        def outputs(embedding):
            model = nnx.merge(graphdef, params | {"model": params["model"] | {"embed_tokens": embedding}})
            return (model(ids, position_ids, segment_ids, cache).logits[0] * direction_TV).sum(-1)

        return jax.jacrev(outputs)(params["model"]["embed_tokens"])["embedding"][:, ids[0]]

    return np.abs(gradients(tiny_params(config))).max(-1)


# 200 is three chunks of queries and a piece.
@pytest.mark.parametrize(
    "fields",
    [pytest.param({}, id="xpos"), pytest.param({"position_embedding": "rope"}, id="rope", marks=pytest.mark.long)],
)
def test_law_1_causality(fields: dict) -> None:
    touched = reach(tiny_config(vocab_size=VOCAB, max_position_embeddings=256, **fields), T=200)
    allowed = np.tril(np.ones((200, 200), bool))
    assert (touched[~allowed] == 0).all()
    assert (touched[allowed] > 0).all()


@pytest.mark.long  # tests/test_convert/test_parity.py has it in every combination of switches
def test_law_1_packed_documents() -> None:
    lengths, padding = (70, 1, 100, 20), 9
    positions, segment_ids = segments(*lengths, padding=padding)
    config = tiny_config(vocab_size=VOCAB, max_position_embeddings=256, xpos_learnable=True)
    touched = reach(config, 200, positions, segment_ids)
    allowed = np.tril(segment_ids[0][:, None] == segment_ids[0][None])
    assert (touched[~allowed] == 0).all()
    assert (touched[allowed] > 0).all()


@pytest.mark.parametrize("fresh", [True, False])
def test_law_1_behind_a_cache(fresh: bool) -> None:
    positions, segment_ids = segments(7, 1, 12)
    config = tiny_config(vocab_size=VOCAB)
    cache = dataclasses.replace(KVCache.create(config, 1, 24), fresh=fresh)
    touched = reach(config, 20, positions, segment_ids, cache)
    allowed = np.tril(segment_ids[0][:, None] == segment_ids[0][None])
    assert (touched[~allowed] == 0).all()
    assert (touched[allowed] > 0).all()


def test_packed_documents_equal_documents_alone() -> None:
    """Across the borders of query chunks, and with padding behind."""
    config = tiny_config(max_position_embeddings=256)
    ids, (positions, segment_ids) = random_tokens(config, 1, 150), segments(90, 50, padding=10)
    graphdef, state = nnx.split(tiny_model(config))
    forward = jax.jit(lambda state, *inputs: nnx.merge(graphdef, state)(*inputs).logits)
    packed = forward(state, ids, positions, segment_ids)
    assert relative_error(packed[:, :90], forward(state, ids[:, :90])) < 1e-5
    assert relative_error(packed[:, 90:140], forward(state, ids[:, 90:140])) < 1e-5


@pytest.mark.parametrize("tied", short_tier([False, True], 1))
def test_unstacked_equals_stacked(tied: bool) -> None:
    config = tiny_config(tie_word_embeddings=tied, num_hidden_layers=3, intermediate_size=(9, 24, 17))
    model, ids = tiny_model(config), random_tokens(config, 2, 9)
    unstacked = model.unstack()
    assert [block.mlp.up_proj.kernel.get_value().shape for block in unstacked.model.layers] == [
        (16, 9),
        (16, 24),
        (16, 17),
    ]
    assert not isinstance(model.model.layers, nnx.List), "the model itself stays as it is"

    def read(model: ByteModel) -> tuple:
        graphdef, state = nnx.split(model)
        cache = KVCache.create(config, 2, 12)
        output = jax.jit(lambda state: nnx.merge(graphdef, state)(ids, cache=cache))(state)
        return output.logits, output.cache

    (logits, cache), (unstacked_logits, unstacked_cache) = read(model), read(unstacked)
    assert relative_error(unstacked_logits, logits) < 1e-5
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-5), cache, unstacked_cache))
    assert relative_error(unstacked_logits, jax.jit(lambda: model(ids).logits)()) < 1e-5


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="xpos", marks=pytest.mark.long),
        pytest.param({"sliding_window": 3, "position_embedding": "rope"}, id="rope, window", marks=pytest.mark.long),
        pytest.param({"pruned_heads": ((0,), (2, 3)), "sliding_window": 2}, id="pruned, window"),
    ],
)
def test_steps_of_a_loop_of_your_own_equal_the_full_forward(fields: dict) -> None:
    config = tiny_config(**fields)
    model, ids = tiny_model(config), random_tokens(config, 2, 9)
    graphdef, state = nnx.split(model)
    step = jax.jit(lambda state, *inputs: nnx.merge(graphdef, state).forward_step(*inputs))
    logits, keys, values = step(state, ids[:, :4])
    pieces = [logits]
    for start, end in ((4, 5), (5, 6), (6, 9)):
        logits, keys, values = step(state, ids[:, start:end], keys, values)
        shape = (2, config.num_key_value_heads, end, config.head_dim)
        assert len(keys) == len(values) == config.num_hidden_layers
        assert {x.shape for x in (*keys, *values)} == {shape}
        pieces.append(logits)
    expected = jax.jit(lambda: model(ids).logits)()
    assert pieces[0].dtype == jnp.float32
    assert relative_error(np.concatenate(pieces, axis=1), expected) < 1e-5


def test_logits_are_hidden_states_times_the_head() -> None:
    for tied in (False, True):
        config = tiny_config(tie_word_embeddings=tied)
        model, ids = tiny_model(config), random_tokens(config, 2, 5)
        assert hasattr(model, "lm_head") != tied
        head = model.model.embed_tokens.embedding[...].T if tied else model.lm_head.kernel[...]
        hidden, logits = jax.jit(lambda model=model, ids=ids: (model.model(ids).hidden, model(ids).logits))()
        expected = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)
        assert relative_error(logits, expected) < 1e-5


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters() -> None:
    config = tiny_config(initializer_range=0.1)
    rounded, ids = tiny_model(config, jnp.bfloat16), random_tokens(config, 2, 9)
    output = jax.jit(lambda: rounded(ids).logits)()
    assert output.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(rounded)))
    # Each of the dozen matmuls rounds by up to 2^-9.
    assert relative_error(output, jax.jit(lambda: tiny_model(config)(ids).logits)()) < 12 * 2**-9


def test_init_is_scaled_by_depth() -> None:
    """A sample's standard deviation is off by 1 / sqrt(2n) of itself: below 0.8 % here, and 4 % is five of that."""
    L, scale = 8, 0.05
    config = ByteConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=L,
        num_attention_heads=2,
        initializer_range=scale,
        max_position_embeddings=64,
    )
    params = tiny_params(config)
    layers = params["model"]["layers"]
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        kernel = np.asarray((layers["mlp"] if name in layers["mlp"] else layers["self_attn"])[name]["kernel"])
        expected = scale / math.sqrt(2 * L) if name in ("o_proj", "down_proj") else scale
        assert kernel.std() == pytest.approx(expected, rel=0.04), name
        assert abs(kernel.mean()) < 5 * expected / math.sqrt(kernel.size), name
        assert len({layer.tobytes() for layer in kernel}) == L, f"{name}: layers must not start alike"
    for matrix in (params["model"]["embed_tokens"]["embedding"], params["lm_head"]["kernel"]):
        assert np.std(matrix) == pytest.approx(scale, rel=0.04)
    for norm in (layers["input_layernorm"], layers["post_attention_layernorm"], params["model"]["norm"]):
        assert np.all(norm["scale"] == 1)


def test_init_depends_on_the_seed_alone() -> None:
    config = tiny_config()
    same = jax.tree.map(np.array_equal, tiny_params(config), jax.jit(lambda: init_params(config, 0))())
    assert all(jax.tree.leaves(same))
    other = tiny_params(config, seed=1)
    assert not np.array_equal(other["lm_head"]["kernel"], tiny_params(config)["lm_head"]["kernel"])


AXES = {
    "model/embed_tokens/embedding": ("vocab", "hidden"),
    "model/layers/input_layernorm/scale": ("norm",),
    "model/layers/post_attention_layernorm/scale": ("norm",),
    "model/layers/self_attn/q_proj/kernel": ("hidden", "heads"),
    "model/layers/self_attn/k_proj/kernel": ("hidden", "kv_heads"),
    "model/layers/self_attn/v_proj/kernel": ("hidden", "kv_heads"),
    "model/layers/self_attn/o_proj/kernel": ("heads", "hidden"),
    "model/layers/mlp/gate_proj/kernel": ("hidden", "feed_forward"),
    "model/layers/mlp/up_proj/kernel": ("hidden", "feed_forward"),
    "model/layers/mlp/down_proj/kernel": ("feed_forward", "hidden"),
    "model/norm/scale": ("norm",),
    "model/rotary_emb/zeta": ("norm",),
    "lm_head/kernel": ("hidden", "vocab"),
}


def test_every_parameter_names_its_axes() -> None:
    _, state = abstract_model(tiny_config(xpos_learnable=True))
    variables = nnx.to_pure_dict(state, extract_fn=lambda variable: variable)
    leaves, _ = jax.tree_util.tree_flatten_with_path(variables, is_leaf=lambda node: isinstance(node, nnx.Variable))
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): variable for path, variable in leaves}
    assert {name: variable.get_metadata()["axes"] for name, variable in named.items()} == AXES
    for name, variable in named.items():
        stacked = name.startswith("model/layers/")
        assert variable.get_value().ndim == len(AXES[name]) + stacked, name
        assert set(AXES[name]) <= LOGICAL_AXIS_RULES.keys(), name
