"""Rotary positions: RoPE, and XPos, which lets scores decay with distance."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stellarbyte.architecture import XPOS_SMALLEST_ZETA, ByteConfig
from stellarbyte.kv_cache.evidence import Rotation
from stellarbyte_jax.model.rope_scaling import dynamic_frequencies, rope_frequencies


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RotaryTables:
    """cos and sin for each position, with XPos' factors: float32 [B, T, H]; B may be 1."""

    q_cos: jax.Array
    q_sin: jax.Array
    k_cos: jax.Array
    k_sin: jax.Array


class RotaryEmbedding(nnx.Module):
    """Makes the tables that turn queries and keys by their positions, in Hugging Face's rotate-half convention.

    RoPE: Su et al. 2021, arXiv:2104.09864. XPos: Sun et al. 2022, arXiv:2212.10554. A query at n is multiplied by
    zeta^((n - r) / base) and a key at m by zeta^((r - m) / base), with the fixed reference r =
    max_position_embeddings / 2. A score then depends on n - m alone, and cached keys are final.
    """

    def __init__(self, config: ByteConfig) -> None:
        assert config.head_dim is not None
        self.config = config
        inv_freq, self.attention_factor = rope_frequencies(config)
        self.inv_freq = _Constant(inv_freq)
        self.xpos = config.position_embedding == "xpos"
        self.reference = config.max_position_embeddings / 2
        self.scale_base = config.xpos_scale_base
        if self.xpos:
            zeta = first_zeta(config.head_dim)
            learnable = config.xpos_learnable
            self.zeta = nnx.Param(jnp.asarray(zeta), axes=("norm",), decays=False) if learnable else _Constant(zeta)

    def __call__(self, position_ids: jax.Array) -> RotaryTables:
        """The tables for int positions [B, T]."""
        cos, sin, q_scale, k_scale = self.rotation(position_ids)
        if not self.xpos:
            cos, sin = _both_halves(cos), _both_halves(sin)
            return RotaryTables(cos, sin, cos, sin)
        return RotaryTables(
            _both_halves(cos * q_scale),
            _both_halves(sin * q_scale),
            _both_halves(cos * k_scale),
            _both_halves(sin * k_scale),
        )

    def rotation(self, position_ids: jax.Array) -> Rotation:
        """The same for each pair, with XPos' factors apart, which are 1 without XPos: [..., H / 2] for int [...]."""
        positions = position_ids.astype(jnp.float32)[..., None]
        angles = positions * self._frequencies(position_ids)
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        if self.attention_factor != 1:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        if not self.xpos:
            return Rotation(cos, sin, jnp.ones_like(cos), jnp.ones_like(cos))
        exponent = (positions - self.reference) / self.scale_base * jnp.log(self._zeta_in_range())
        return Rotation(cos, sin, jnp.exp(exponent), jnp.exp(-exponent))

    def _frequencies(self, position_ids: jax.Array) -> jax.Array | np.ndarray:
        scaling = self.config.rope_scaling
        if scaling is not None and scaling.rope_type == "dynamic":
            return dynamic_frequencies(self.config, position_ids.max() + 1)
        return self.inv_freq.value

    def _zeta_in_range(self) -> jax.Array:
        if isinstance(self.zeta, _Constant):
            return jnp.asarray(self.zeta.value)
        # The clip is straight-through, because pair 0 starts on the bound, where a clip's own gradient is ambiguous.
        zeta = self.zeta[...]
        return zeta + jax.lax.stop_gradient(jnp.clip(zeta, XPOS_SMALLEST_ZETA, 1.0) - zeta)


def first_zeta(head_dim: int) -> np.ndarray:
    """The zeta of each pair that XPos gives, at which a learnable one starts: float32 [head_dim / 2], rising."""
    pair_starts = np.arange(0, head_dim, 2, dtype=np.float32)
    return (pair_starts / np.float32(head_dim) + np.float32(0.4)) / np.float32(1.4)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns each pair (x_i, x_{i + H/2}) of the last axis, in float32; the result has x's dtype."""
    x32 = x.astype(jnp.float32)
    first, second = jnp.split(x32, 2, axis=-1)
    return (x32 * cos + jnp.concatenate([-second, first], axis=-1) * sin).astype(x.dtype)


def _both_halves(table: jax.Array) -> jax.Array:
    return jnp.concatenate([table, table], axis=-1)


@dataclass(frozen=True)
class _Constant:
    """A table that is no parameter; NNX would take a bare array attribute for state."""

    value: np.ndarray

    def __hash__(self) -> int:
        return hash(self.value.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constant) and np.array_equal(self.value, other.value)
