"""Slots of a cache: keys or values of one layer, in floats or in 8 bits each."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from stellarbyte.errors import UserError
from stellarbyte_jax.model.int8_parts import LARGEST, MOST_PRODUCTS, in_parts, joined

CACHE_DTYPES = ("float32", "bfloat16", "int8", "float8_e4m3fn")

# float8 numbers are kept as their bits: XLA's CPU backend would write a whole array of float8 anew to change one slot.
_FLOAT8_BITS = jnp.uint8
_LARGEST_FLOAT8 = 448

_BY_HEAD = ((0, 1), (0, 1))


def check_cache_dtype(dtype: DTypeLike) -> None:
    """Raises UserError: the dtype is none of CACHE_DTYPES."""
    if jnp.dtype(dtype).name not in CACHE_DTYPES:
        raise UserError(f"cache dtype {jnp.dtype(dtype).name} is not supported: use {', '.join(CACHE_DTYPES)}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """Keys or values of one layer, [B, K, S, H].

    In int8 and float8 each slot of each head has a float32 scale, [B, K, S, 1]: XPos lets keys grow with position.
    """

    data: jax.Array
    scales: jax.Array | None = None

    @staticmethod
    def create(shape: tuple[int, int, int, int], dtype: DTypeLike) -> "Slots":
        """Slots that hold nothing."""
        if jnp.dtype(dtype).itemsize > 1:
            return Slots(jnp.zeros(shape, dtype))
        dtype = jnp.int8 if jnp.dtype(dtype) == jnp.int8 else _FLOAT8_BITS
        return Slots(jnp.zeros(shape, dtype), jnp.zeros((*shape[:3], 1), jnp.float32))

    def read(self, dtype: DTypeLike) -> jax.Array:
        """The stored keys or values, [B, K, S, H], in a compute dtype."""
        if self.scales is None:
            return self.data.astype(dtype)
        return (self._unscaled() * self.scales).astype(dtype)

    def scores(self, q_BKQH: jax.Array) -> jax.Array:
        """The products of few queries with keys that these are: float32 [B, K, Q, S].

        On a CPU, XLA's matmuls of so few rows are slower than one matrix-vector product for each query.
        """
        if self.scales is None:
            keys = self.data.astype(q_BKQH.dtype)
        elif self.data.dtype == jnp.int8:
            parts_BKQH, step_BKQ1 = in_parts(q_BKQH)
            over_H = (((3,), (3,)), _BY_HEAD)
            sums_BKSQ = jax.lax.dot_general(self.data, parts_BKQH, over_H, preferred_element_type=jnp.int32)
            return joined(sums_BKSQ.swapaxes(2, 3), step_BKQ1) * self.scales.swapaxes(2, 3)
        else:
            keys = self._unscaled()
        products = [
            jnp.einsum("BKSH,BKH->BKS", keys, q_BKQH[:, :, index], preferred_element_type=jnp.float32)
            for index in range(q_BKQH.shape[2])
        ]
        scores_BKQS = jnp.stack(products, axis=2)
        return scores_BKQS if self.scales is None else scores_BKQS * self.scales.swapaxes(2, 3)

    def sums(self, weights_BKQS: jax.Array, dtype: DTypeLike) -> jax.Array:
        """The sums of values that these are, with the weights of few queries: [B, K, Q, H]."""
        if self.scales is None:
            return jnp.einsum("BKQS,BKSH->BKQH", weights_BKQS.astype(dtype), self.data.astype(dtype))
        weights_BKQS = weights_BKQS * self.scales.swapaxes(2, 3)
        if self.data.dtype == jnp.int8 and self.data.shape[2] <= MOST_PRODUCTS:
            parts_BKQS, step_BKQ1 = in_parts(weights_BKQS)
            over_S = (((3,), (2,)), _BY_HEAD)
            sums_BKQH = jax.lax.dot_general(parts_BKQS, self.data, over_S, preferred_element_type=jnp.int32)
            return joined(sums_BKQH, step_BKQ1)
        return jnp.einsum("BKQS,BKSH->BKQH", weights_BKQS, self._unscaled())

    def write(self, x_BKTH: jax.Array, slots_BT: jax.Array) -> "Slots":
        """The slots with token t of row b stored in slot slots_BT[b, t]; a slot beyond the last stores nothing."""
        rows_B1 = jnp.arange(slots_BT.shape[0])[:, None]

        def write(old_BKSH: jax.Array, new_BKTH: jax.Array) -> jax.Array:
            new_BTKH, into_BT = new_BKTH.transpose(0, 2, 1, 3), slots_BT
            if slots_BT.size == 1:
                # XLA's CPU compiler would do a single write once more inside the attention that reads this, and copy
                # all slots at every token for that. It does not with a second one, which is dropped.
                new_BTKH = jnp.tile(new_BTKH, (1, 2, 1, 1))
                into_BT = jnp.append(slots_BT, old_BKSH.shape[2])[None]
            return old_BKSH.at[rows_B1, :, into_BT].set(new_BTKH, mode="drop")

        return jax.tree.map(write, self, self._packed(x_BKTH))

    def take(self, x_BKTH: jax.Array, source_BS: jax.Array) -> "Slots":
        """The slots with token source_BS[b, s] of row b stored in slot s, unless that is negative."""

        def take(old_BKSH: jax.Array, new_BKTH: jax.Array) -> jax.Array:
            taken_BKSH = jax.vmap(lambda new_KTH, source_S: new_KTH[:, jnp.maximum(source_S, 0)])(new_BKTH, source_BS)
            return jnp.where(source_BS[:, None, :, None] >= 0, taken_BKSH, old_BKSH)

        return jax.tree.map(take, self, self._packed(x_BKTH))

    def grown(self, more: int) -> "Slots":
        """The slots with so many empty ones behind them."""
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))), self)

    def gathered(self, source_BKC: jax.Array) -> "Slots":
        """Slots of which slot c of each head holds what slot source_BKC[b, k, c] did; anything if that is negative."""
        source_BKC1 = jnp.maximum(source_BKC, 0)[..., None]
        return jax.tree.map(lambda x: jnp.take_along_axis(x, source_BKC1, axis=2, mode="clip"), self)

    def _packed(self, x_BKTH: jax.Array) -> "Slots":
        if self.scales is None:
            return Slots(x_BKTH.astype(self.data.dtype))
        x32 = x_BKTH.astype(jnp.float32)
        largest = LARGEST if self.data.dtype == jnp.int8 else _LARGEST_FLOAT8
        scales = jnp.abs(x32).max(axis=-1, keepdims=True) / largest
        scaled = x32 / jnp.where(scales > 0, scales, 1.0)
        if self.data.dtype == jnp.int8:
            return Slots(jnp.round(scaled).astype(jnp.int8), scales)
        return Slots(jax.lax.bitcast_convert_type(scaled.astype(jnp.float8_e4m3fn), _FLOAT8_BITS), scales)

    def _unscaled(self) -> jax.Array:
        """What int8 or float8 slots hold, in float32, before it is multiplied by the scales."""
        if self.data.dtype == jnp.int8:
            return self.data.astype(jnp.float32)
        # A float8 is a float16 of fewer bits whose exponent is counted from another point, 2^8 away. XLA's own cast
        # takes many more operations.
        bits = self.data.astype(jnp.uint16)
        halves = jax.lax.bitcast_convert_type(((bits & 0x80) << 8) | ((bits & 0x7F) << 7), jnp.float16)
        return halves.astype(jnp.float32) * 2.0**8
