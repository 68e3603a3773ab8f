"""RMSNorm against its formula."""

import jax.numpy as jnp
import numpy as np

from stellarbyte_jax.model.norm import RMSNorm
from test_jax.tiny import relative_error


def test_rms_norm_is_its_formula() -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 16)).astype(np.float32) * np.float32(1e-3)
    norm = RMSNorm(16, eps=1e-5)
    norm.scale[...] = jnp.linspace(-1, 2, 16)
    x64 = x.astype(np.float64)
    expected = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-5) * np.linspace(-1, 2, 16)
    assert relative_error(norm(jnp.asarray(x)), expected) < 1e-6


def test_statistics_are_float32_in_a_bfloat16_model() -> None:
    """A thousand squares near 300^2, added up in bfloat16, would stop growing at 256 times the first."""
    x = jnp.full((1, 1024), 300.0, jnp.bfloat16)
    normed = RMSNorm(1024, eps=1e-5)(x)
    assert normed.dtype == jnp.bfloat16
    assert np.all(np.asarray(normed, np.float32) == 1.0)
