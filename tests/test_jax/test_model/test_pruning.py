"""What is cut is gone from the function, the parameters and the config, and stays so; the rest is as it was."""

import jax
import numpy as np
import pytest
from flax import nnx

from stellarbyte.errors import UserError
from stellarbyte.pruning.cuts import Cuts
from stellarbyte_jax.model.pruning import cut
from stellarbyte_jax.training.state import abstract_model
from test_jax.tiny import random_tokens, relative_error, tiny_config, tiny_params

CONFIG = tiny_config(attention_bias=True)  # 2 layers of 4 heads that read 2 key/value heads
H = CONFIG.head_dim


def noisy_params():
    """Biases start at 0, where nobody would see them pruned."""
    keys = iter(jax.random.split(jax.random.key(5), 100))
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), tiny_params(CONFIG))


def logits(config, params):
    return nnx.merge(abstract_model(config)[0], params)(random_tokens(config, 2, 9)).logits


def test_zeros_are_where_heads_went_in_some_layers_alone() -> None:
    config, pruned = cut(CONFIG, noisy_params(), Cuts(heads={0: (0, 1), 1: (3,)}))
    assert config.pruned_heads == ((0, 1), (3,))
    attention = pruned["model"]["layers"]["self_attn"]
    zero = {name: attention[name]["kernel"] == 0 for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    assert zero["q_proj"][0][:, : 2 * H].all() and not zero["q_proj"][0][:, 2 * H :].any()
    assert zero["q_proj"][1][:, 3 * H :].all() and not zero["q_proj"][1][:, : 3 * H].any()
    assert zero["o_proj"][0][: 2 * H].all() and not zero["o_proj"][0][2 * H :].any()
    for name in ("k_proj", "v_proj"):
        assert zero[name][0][:, :H].all() and not zero[name][0][:, H:].any(), "a whole group went"
        assert not zero[name][1].any(), "a head of the group still reads them"
        assert (attention[name]["bias"][0] == 0).tolist() == [True] * H + [False] * H
    assert not (attention["o_proj"]["bias"] == 0).any()


def test_cuts_add_up() -> None:
    once = cut(CONFIG, noisy_params(), Cuts(heads={0: (0, 2), 1: (1,)}, channels={1: (0, 1, 5)}))
    first = cut(CONFIG, noisy_params(), Cuts(heads={0: (2,)}, channels={1: (0, 1)}))
    twice = cut(*first, Cuts(heads={0: (0,), 1: (1,)}, channels={1: (3,)}))  # what was channel 5
    assert once[0] == twice[0]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), once[1], twice[1]))


def test_heads_and_channels_stay_out_under_training() -> None:
    config, params = cut(CONFIG, noisy_params(), Cuts(heads={0: (1,)}, channels={0: (0, 1, 2)}))
    gradient = jax.jit(jax.grad(lambda p: logits(config, p).std()))(params)["model"]["layers"]
    assert (np.asarray(gradient["self_attn"]["o_proj"]["kernel"][0, H : 2 * H]) == 0).all()
    assert (np.asarray(gradient["self_attn"]["q_proj"]["kernel"][0, :, H : 2 * H]) == 0).all()
    assert (np.asarray(gradient["self_attn"]["q_proj"]["kernel"][0, :, :H]) != 0).any()
    for name, axis in (("gate_proj", -1), ("up_proj", -1), ("down_proj", -2)):
        moved = np.moveaxis(np.asarray(gradient["mlp"][name]["kernel"][0]), axis, 0)
        assert not moved[21:].any() and moved[:21].any(axis=1).all()


def test_without_layers_the_model_is_shallower() -> None:
    config, params = cut(CONFIG, noisy_params(), Cuts(layers=(0,)))
    assert config.num_hidden_layers == 1
    assert logits(config, params).shape == (2, 9, 40)
    kept = params["model"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert np.array_equal(kept[0], noisy_params()["model"]["layers"]["mlp"]["up_proj"]["kernel"][1])


def test_a_layer_keeps_a_head() -> None:
    with pytest.raises(UserError, match=r"pruned_heads.1 \[0, 1, 2, 3\] leaves no head"):
        cut(CONFIG, noisy_params(), Cuts(heads={1: (0, 1, 2, 3)}))


def test_what_is_left_is_what_it_was() -> None:
    params = noisy_params()
    config, pruned = cut(CONFIG, params, Cuts(heads={0: (0, 1), 1: (3,)}, channels={1: (2, 3)}))
    silenced = jax.tree.map(np.array, params)
    kernel = silenced["model"]["layers"]["self_attn"]["o_proj"]["kernel"]
    kernel[0, : 2 * H] = kernel[1, 3 * H :] = 0
    silenced["model"]["layers"]["mlp"]["down_proj"]["kernel"][1, 2:4] = 0
    assert relative_error(logits(config, pruned), logits(CONFIG, silenced)) < 1e-6
    assert relative_error(logits(config, pruned), logits(CONFIG, params)) > 1e-2
