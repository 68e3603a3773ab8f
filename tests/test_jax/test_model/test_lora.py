"""Adapters: how they start, what they add, what they drop, where they may stand."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints.adapter_trees import join, merge_adapters, split_adapters
from stellarbyte_jax.config import LoRAConfig
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.linear import Linear
from stellarbyte_jax.model.lora import LoRALinear
from stellarbyte_jax.training.state import Params, abstract_model, init_adapters
from test_jax.tiny import random_tokens, relative_error, tiny_config, tiny_params

CONFIG = tiny_config(hidden_size=32, num_hidden_layers=3)
LORA = LoRAConfig(("q_proj", "v_proj", "down_proj"), r=8, layers="0,2")


def model_of(params: Params, lora: LoRAConfig | None, **fields: Any) -> Any:
    return nnx.merge(abstract_model(dataclasses.replace(CONFIG, **fields), lora=lora)[0], params)


fresh = jax.jit(init_adapters, static_argnums=(0, 1, 2))


@nnx.jit
def logits_of(model: Any, ids: np.ndarray, dropout_key: jax.Array | None = None) -> jax.Array:
    return model(ids, dropout_key=dropout_key).logits


def drawn(adapters: Params) -> Params:
    """The same shapes with numbers that say something in both A and B."""
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: generator.normal(0, 0.3, leaf.shape).astype(np.float32), adapters)


def test_it_starts_as_peft_does() -> None:
    """A is uniform within 1 / sqrt(in), each module and layer its own; B is zero, and both where layers have none."""
    layers = fresh(CONFIG, LORA, 0)["model"]["layers"]
    A = {name: part[name]["lora_A"] for part in layers.values() for name in part}
    assert A.keys() == {"q_proj", "v_proj", "down_proj"}
    for name, A_LDR in A.items():
        bound = A_LDR.shape[1] ** -0.5
        assert A_LDR.shape == (3, 24 if name == "down_proj" else 32, 8)
        drawn_LDR = A_LDR[jnp.array([0, 2])]
        assert 0.97 * bound < np.abs(drawn_LDR).max() <= bound
        assert np.std(drawn_LDR) == pytest.approx(bound / 3**0.5, rel=0.1)
        assert abs(np.mean(drawn_LDR)) < 0.1 * bound
        assert not np.array_equal(A_LDR[0], A_LDR[2]) and not A_LDR[1].any()
    assert not np.array_equal(A["q_proj"], A["v_proj"])
    assert not any(leaf.any() for path, leaf in jax.tree.leaves_with_path(layers) if path[-1].key == "lora_B")
    other_seed = fresh(CONFIG, LORA, 1)["model"]["layers"]["self_attn"]["q_proj"]["lora_A"]
    assert not np.array_equal(other_seed, A["q_proj"])


def test_at_the_start_the_model_is_its_base_to_the_bit() -> None:
    base, ids = tiny_params(CONFIG), random_tokens(CONFIG, 2, 9)
    params = join(base, fresh(CONFIG, LORA, 0))
    assert np.array_equal(logits_of(model_of(params, LORA), ids), logits_of(model_of(base, None), ids))


def test_it_adds_what_merging_adds() -> None:
    lora = dataclasses.replace(LORA, lora_alpha=3, use_rslora=True, alpha_pattern={"v_proj": 5})
    base, ids = tiny_params(CONFIG), random_tokens(CONFIG, 2, 9)
    adapters = drawn(fresh(CONFIG, lora, 0))
    merged = jax.tree.map(np.asarray, merge_adapters(jax.device_get(base), adapters, lora))
    attention = dict.fromkeys(("q_proj", "v_proj"), (base, adapters, merged))
    for (name, trees), alpha in zip(attention.items(), (3, 5), strict=True):
        was, adapter, now = (tree["model"]["layers"]["self_attn"][name] for tree in trees)
        A_LDR, B_LRF = (np.asarray(adapter[leaf], np.float64) for leaf in ("lora_A", "lora_B"))
        assert np.allclose(now["kernel"] - np.asarray(was["kernel"]), alpha / 8**0.5 * A_LDR @ B_LRF, atol=1e-5)
    beside = logits_of(model_of(join(base, adapters), lora), ids)
    assert relative_error(beside, logits_of(model_of(merged, None), ids)) < 1e-5
    assert relative_error(beside, logits_of(model_of(base, None), ids)) > 0.1


def test_decoding_sees_adapters_too() -> None:
    """Layers with arrays of their own, as decoding has them, have the adapters of the stacked ones."""
    params = join(tiny_params(CONFIG), drawn(fresh(CONFIG, LORA, 0)))
    model, ids = model_of(params, LORA), random_tokens(CONFIG, 2, 9)
    expected = logits_of(model, ids)
    logits, past_k, past_v = nnx.jit(lambda model: model.unstack().forward_step(ids[:, :8]))(model)
    assert relative_error(logits, expected[:, :8]) < 1e-5
    logits, _, _ = nnx.jit(lambda model: model.forward_step(ids[:, 8:], past_k, past_v))(model)
    assert relative_error(logits, expected[:, 8:]) < 1e-5


def dropping(linear: LoRALinear, x: jax.Array, key: jax.Array) -> jax.Array:
    linear.dropout_key = key
    return linear(x)


def test_dropout_is_the_adapters_alone() -> None:
    """The base's output stays; the adapter's mean over many keys is what it is without; modules draw differently."""
    D, F, R = 32, 16, 4
    # Layers of a linear, as the decoder stacks them.
    base = nnx.vmap(lambda rngs: Linear(D, F, axes=("hidden", "heads"), stddev=0.3, execution=Execution(), rngs=rngs))(
        nnx.Rngs(0).split(1)
    )
    lora = LoRAConfig(("q", "k"), r=R, lora_alpha=R, lora_dropout=0.25)
    x = jax.random.normal(jax.random.key(1), (3, 5, D))
    linears = {}
    for name in ("q", "k"):
        linear = LoRALinear(base, lora, name, jax.random.key(0))
        A_DR, B_RF = (drawn({"w": np.zeros(shape)})["w"] for shape in ((D, R), (R, F)))
        linear.lora_A, linear.lora_B = nnx.Param(jnp.asarray(A_DR)), nnx.Param(jnp.asarray(B_RF))
        linear.kernel = nnx.Param(base.kernel[...][0])
        linears[name] = linear
    q = linears["q"]
    whole = q(x)
    plain = x @ q.kernel[...]
    keys = jax.random.split(jax.random.key(2), 400)
    # One by one: all at once they may be rounded otherwise.
    outputs = jnp.stack([dropping(q, x, key) for key in keys])
    assert not np.array_equal(outputs[0], outputs[1])
    spread = np.abs(outputs - plain[None]).mean()
    assert np.abs(outputs.mean(axis=0) - whole).mean() < 0.1 * spread
    assert np.array_equal(dropping(q, x, keys[0]), outputs[0]), "a key says what is dropped"
    assert not np.array_equal(dropping(q, x, keys[0]), dropping(linears["k"], x, keys[0]))
    q.lora_B = nnx.Param(jnp.zeros((R, F)))
    assert np.array_equal(dropping(q, x, keys[0]), plain)


def test_only_training_drops() -> None:
    lora = dataclasses.replace(LORA, lora_dropout=0.5)
    params = join(tiny_params(CONFIG), drawn(fresh(CONFIG, lora, 0)))
    model, ids = model_of(params, lora), random_tokens(CONFIG, 2, 9)
    assert model.model.stochastic and not model_of(params, LORA).model.stochastic
    first, again = (logits_of(model, ids, jax.random.key(seed)) for seed in (0, 0))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, logits_of(model, ids, jax.random.key(1)))
    assert np.array_equal(logits_of(model, ids), logits_of(model_of(params, LORA), ids))


EXPERTS = {"num_experts": 4, "moe_intermediate_size": 8}
NONE_THERE = "a layer of this model has self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, self_attn.v_proj"


@pytest.mark.parametrize(
    ("lora", "fields", "message"),
    [
        (LoRAConfig(("gate_proj",)), EXPERTS, f"lora.target_modules gate_proj fits no module: {NONE_THERE}"),
        (LoRAConfig(("experts",)), EXPERTS, f"lora.target_modules experts fits no module: {NONE_THERE}"),
        (LoRAConfig(("lm_head",)), EXPERTS, f"lora.target_modules lm_head fits no module: {NONE_THERE}"),
        (LoRAConfig(("mlp.gate",)), EXPERTS, f"lora.target_modules mlp.gate fits no module: {NONE_THERE}"),
        (
            LoRAConfig(("q_proj", "v_proj"), rank_pattern={"o_proj": 2}),
            {},
            "lora.rank_pattern.o_proj fits no adapted module: these are self_attn.q_proj, self_attn.v_proj",
        ),
        (LoRAConfig(("q_proj",), layers="3"), {}, "lora.layers 3 names layer 3, but the model has layers 0 to 2"),
    ],
)
def test_what_is_not_there_is_refused(lora: LoRAConfig, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        abstract_model(dataclasses.replace(CONFIG, **fields), lora=lora)
    assert str(refused.value).startswith(message)


def test_all_linear_is_every_matrix_of_a_layer_but_the_router_and_the_experts() -> None:
    config = dataclasses.replace(CONFIG, **EXPERTS, num_shared_experts=1)
    layers = fresh(config, LoRAConfig("all-linear"), 0)["model"]["layers"]
    assert layers["self_attn"].keys() == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert layers["mlp"].keys() == {"shared_experts"}
    assert layers["mlp"]["shared_experts"].keys() == {"gate_proj", "up_proj", "down_proj"}


@given(
    st.recursive(
        st.dictionaries(st.sampled_from(("kernel", "bias", "lora_A", "lora_B")), st.integers(), min_size=1),
        lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1),
    )
)
@settings(max_examples=settings.default.max_examples // 4)
def test_trees_apart_and_together(tree: Any) -> None:
    base, adapters = split_adapters(tree)
    assert join(base, adapters) == tree
    assert join(None, tree) is tree
