"""Dropout and DropPath keep the mean and drop what they say."""

import jax
import jax.numpy as jnp
import numpy as np

from stellarbyte_jax.model.dropout import drop_path, dropout


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    x = jnp.ones((400, 500))
    out = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    assert abs((out == 0).mean() - 0.25) < 0.005
    assert np.unique(out[out > 0]).tolist() == [np.float32(4 / 3)]


def test_nothing_is_dropped_without_a_key_or_a_rate() -> None:
    x = jnp.ones((4, 5))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_drop_path_drops_whole_rows() -> None:
    x = jnp.ones((4000, 2, 3), jnp.bfloat16)
    out = np.asarray(drop_path(x, jnp.asarray(0.4), jax.random.key(1)), np.float32)
    assert (out == out[:, :1, :1]).all()
    assert abs((out[:, 0, 0] == 0).mean() - 0.4) < 0.03
    assert abs(out.mean() - 1) < 0.05
