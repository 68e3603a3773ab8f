"""Which queries of a row each device works on where devices share out its tokens."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from stellarbyte_jax.sharding import Layout


@dataclass(frozen=True)
class SharedRows:
    """Rows whose tokens lie in order on the devices of a mesh's `axes`; every device attends to all their keys.

    balanced: the later a query, the more keys it sees, so for attention a device gives its tokens away for the i-th
    part of 2 · shards from the front and the i-th from the end: all then have the same number of blocks to work on
    (Grattafiori et al. 2024, arXiv:2407.21783, section 3.3.2). With a window all have that anyway.
    """

    axes: tuple[str, ...]
    shards: int
    balanced: bool

    @classmethod
    def of(cls, layout: Layout, T: int, window: int | None, multiple: int) -> "SharedRows":
        """Of T tokens; balanced where a kernel's tiles of `multiple` tokens allow it."""
        axes, shards = layout.mesh_axes("length"), layout.parts("length")
        return cls(axes, shards, shards > 1 and window is None and T % (2 * shards * multiple) == 0)

    @property
    def parts(self) -> int:
        """Into how many stretches of neighbours the tokens are cut."""
        return 2 * self.shards if self.balanced else self.shards

    def positions(self, T: int) -> np.ndarray:
        """Of the queries, device by device in the order in which each works on them: int32 [T]."""
        stretches = np.arange(T, dtype=np.int32).reshape(self.parts, -1)
        if self.balanced:
            # Of its two, an even device holds the early one first, an odd one the late one: see `take`.
            early, late = np.arange(self.shards), self.parts - 1 - np.arange(self.shards)
            even = early % 2 == 0
            pairs = np.stack([np.where(even, early, late), np.where(even, late, early)], axis=1)
            stretches = stretches[pairs.reshape(-1)]
        return stretches.reshape(-1)

    def take(self, x: jax.Array, axis: int) -> jax.Array:
        """On one device: what it works on, for what lies here."""
        return self._swap(x, axis, back=False)

    def put(self, x: jax.Array, axis: int) -> jax.Array:
        """On one device: what lies here, for what it worked on."""
        return self._swap(x, axis, back=True)

    def whole(self, x: jax.Array, axis: int) -> jax.Array:
        """On one device: all tokens; their gradient is added up where each lies."""
        return jax.lax.all_gather(x, self.axes, axis=axis, tiled=True) if self.shards > 1 else x

    def _swap(self, x: jax.Array, axis: int, back: bool) -> jax.Array:
        if not self.balanced:
            return x
        halves = []
        # Device d has the stretches 2d and 2d + 1: even ones go to even devices from the front, to odd ones from the
        # end, odd ones the other way. So each device gets one of either.
        for half, part in enumerate(jnp.split(x, 2, axis=axis)):
            stretches = [2 * device + half for device in range(self.shards)]
            moves = [(s // 2, s if s < self.shards else self.parts - 1 - s) for s in stretches]
            halves.append(jax.lax.ppermute(part, self.axes, [move[::-1] for move in moves] if back else moves))
        return jnp.concatenate(halves, axis=axis)


class CausalRows(masks.LocalMask):
    """Splash's mask for queries at these positions, in any order, that see the last `window` keys or all before them.

    Blocks that are seen whole, or not at all, are told by their borders: at 128 k tokens there are 65536 of them, each
    looked at several times.
    """

    def __init__(self, positions_T: np.ndarray, window: int | None) -> None:
        super().__init__((positions_T.size,) * 2, (None if window is None else window - 1, 0), 0)
        self.q_sequence = positions_T

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """bool of the block's shape, or [1, 1] if it is the same everywhere."""
        rows, first, last = self.q_sequence[index[0]], index[1].start, index[1].stop - 1
        before = self.shape[1] if self.window_size[0] is None else self.window_size[0]
        if last <= rows.min() and first >= rows.max() - before:
            return np.ones((1, 1), np.bool_)
        if first > rows.max() or last < rows.min() - before:
            return np.zeros((1, 1), np.bool_)
        return super().__getitem__(index)
