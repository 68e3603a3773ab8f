"""Pruned heads are gone: from the function, the parameters and the config."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from stellarbyte.errors import UserError
from stellarbyte_jax.model.pruning import least_important, prune_heads
from stellarbyte_jax.training.state import abstract_model
from test_jax.tiny import random_tokens, relative_error, tiny_config, tiny_params

CONFIG = tiny_config(attention_bias=True)  # 2 layers of 4 heads that read 2 key/value heads
H = CONFIG.head_dim


def noisy_params():
    """Biases start at 0, where nobody would see them pruned."""
    keys = iter(jax.random.split(jax.random.key(5), 100))
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), tiny_params(CONFIG))


def logits(config, params):
    ids = random_tokens(config, 2, 9)
    return nnx.merge(abstract_model(config)[0], params)(ids).logits


def test_pruning_silences_the_heads_and_nothing_else() -> None:
    params = noisy_params()
    config, pruned = prune_heads(CONFIG, params, {0: [0, 1], 1: {3}})
    assert config.pruned_heads == ((0, 1), (3,))
    silenced = jax.tree.map(lambda p: p, params)
    kernel = params["model"]["layers"]["self_attn"]["o_proj"]["kernel"]
    kernel = kernel.at[0, : 2 * H].set(0).at[1, 3 * H :].set(0)
    silenced["model"]["layers"]["self_attn"]["o_proj"]["kernel"] = kernel
    assert relative_error(logits(config, pruned), logits(CONFIG, silenced)) < 1e-6
    assert relative_error(logits(config, pruned), logits(CONFIG, params)) > 1e-2


def test_zeros_are_where_something_went() -> None:
    _, pruned = prune_heads(CONFIG, noisy_params(), {0: [0, 1], 1: [3]})
    attention = pruned["model"]["layers"]["self_attn"]
    zero = {
        name: [(np.asarray(attention[name]["kernel"][layer]) == 0) for layer in (0, 1)]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    }
    assert zero["q_proj"][0][:, : 2 * H].all() and not zero["q_proj"][0][:, 2 * H :].any()
    assert zero["q_proj"][1][:, 3 * H :].all() and not zero["q_proj"][1][:, : 3 * H].any()
    assert zero["o_proj"][0][: 2 * H].all() and not zero["o_proj"][0][2 * H :].any()
    for name in ("k_proj", "v_proj"):
        assert zero[name][0][:, :H].all() and not zero[name][0][:, H:].any(), "a whole group went"
        assert not zero[name][1].any(), "a head of the group still reads them"
        assert (np.asarray(attention[name]["bias"][0]) == 0).tolist() == [True] * H + [False] * H
    assert not (np.asarray(attention["o_proj"]["bias"]) == 0).any()


def test_pruning_adds_up() -> None:
    params = noisy_params()
    once = prune_heads(CONFIG, params, {0: [0, 2], 1: [1]})
    twice = prune_heads(*prune_heads(CONFIG, params, {0: [2]}), {0: [0], 1: [1]})
    assert once[0] == twice[0]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), once[1], twice[1]))


def test_pruned_heads_stay_out_under_training() -> None:
    config, params = prune_heads(CONFIG, noisy_params(), {0: [1]})
    gradient = jax.grad(lambda p: logits(config, p).std())(params)["model"]["layers"]["self_attn"]
    assert (np.asarray(gradient["o_proj"]["kernel"][0, H : 2 * H]) == 0).all()
    assert (np.asarray(gradient["q_proj"]["kernel"][0, :, H : 2 * H]) == 0).all()
    assert (np.asarray(gradient["q_proj"]["kernel"][0, :, :H]) != 0).any()


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({2: [0]}, "layer 2 does not exist: the model has layers 0 to 1"),
        ({0: [4]}, r"pruned_heads.0 \[4\] must rise, each head from 0 to"),
        ({1: [0, 1, 2, 3]}, r"pruned_heads.1 \[0, 1, 2, 3\] leaves no head"),
    ],
)
def test_heads_that_cannot_go(heads, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prune_heads(CONFIG, noisy_params(), heads)


def test_the_least_important_heads_are_chosen() -> None:
    scores = np.array([[4.0, 1.0, 9.0, 8.0], [2.0, 3.0, 7.0, 7.0]])
    assert least_important(scores, 3, CONFIG) == {0: [1], 1: [0, 1]}
    assert least_important(scores, 4, CONFIG, whole_groups=True) == {0: [0, 1], 1: [0, 1]}
    # Each layer keeps one: the fourth of layer 1 stays, however unimportant.
    scores[1] = 0.1
    assert least_important(scores, 4, CONFIG) == {0: [1], 1: [0, 1, 2]}
    pruned = dataclasses.replace(CONFIG, pruned_heads=((1,), ()))
    assert least_important(scores, 4, pruned) == {0: [0], 1: [0, 1, 2]}


@pytest.mark.parametrize(
    ("count", "whole_groups", "message"),
    [
        (7, False, "7 heads cannot be taken, only 6: every layer must keep at least one"),
        (3, True, "3 heads cannot be taken: give a multiple of 2 of at least 2"),
        (0, False, "0 heads cannot be taken: give a multiple of 1 of at least 1"),
        (6, True, "6 heads cannot be taken, only 4"),
    ],
)
def test_too_many_heads(count: int, whole_groups: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        least_important(np.ones((2, 4)), count, CONFIG, whole_groups)
