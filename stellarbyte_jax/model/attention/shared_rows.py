"""Decides which queries of a row each device works on, if devices share out its tokens."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from stellarbyte_jax.sharding import Layout


@dataclass(frozen=True)
class SharedRows:
    """Rows whose tokens lie in order on the devices of a mesh's `axes`; every device attends to all their keys.

    balanced: a causal query sees more keys the later it stands, so contiguous shards would do unequal work. The row is
    cut into 2 · shards parts and device i attends for parts i and 2 · shards - 1 - i: all devices then have the same
    number of blocks (Grattafiori et al. 2024, arXiv:2407.21783, section 3.3.2). With a window they have that anyway.
    """

    axes: tuple[str, ...]
    shards: int
    balanced: bool

    @classmethod
    def of(cls, layout: Layout, T: int, window: int | None, multiple: int) -> "SharedRows":
        """The sharing of rows of T tokens, balanced if a kernel's tiles of `multiple` tokens allow it."""
        axes, shards = layout.mesh_axes("length"), layout.parts("length")
        return cls(axes, shards, shards > 1 and window is None and T % (2 * shards * multiple) == 0)

    @property
    def parts(self) -> int:
        """The number of stretches of neighbours into which the tokens are cut."""
        return 2 * self.shards if self.balanced else self.shards

    def positions(self, T: int) -> np.ndarray:
        """The positions of the queries, device by device, in the order in which each works on them: int32 [T]."""
        stretches = np.arange(T, dtype=np.int32).reshape(self.parts, -1)
        if self.balanced:
            # An even device holds its early part first, an odd device its late part: see `take`.
            early, late = np.arange(self.shards), self.parts - 1 - np.arange(self.shards)
            even = early % 2 == 0
            pairs = np.stack([np.where(even, early, late), np.where(even, late, early)], axis=1)
            stretches = stretches[pairs.reshape(-1)]
        return stretches.reshape(-1)

    def take(self, x: jax.Array, axis: int) -> jax.Array:
        """On one device: the values that it works on, in exchange for those that lie here."""
        return self._swap(x, axis, back=False)

    def put(self, x: jax.Array, axis: int) -> jax.Array:
        """On one device: the values that belong here, in exchange for those that it worked on."""
        return self._swap(x, axis, back=True)

    def whole(self, x: jax.Array, axis: int) -> jax.Array:
        """On one device: all tokens of the rows; gradients are summed on the device where each token lies."""
        return jax.lax.all_gather(x, self.axes, axis=axis, tiled=True) if self.shards > 1 else x

    def _swap(self, x: jax.Array, axis: int, back: bool) -> jax.Array:
        if not self.balanced:
            return x
        halves = []
        # Device d has the stretches 2d and 2d + 1. Stretch s of the first half of the row goes to device s, stretch s
        # of the second half to the device of its mirror image. So each device gets one even and one odd stretch.
        for half, part in enumerate(jnp.split(x, 2, axis=axis)):
            stretches = [2 * device + half for device in range(self.shards)]
            moves = [(s // 2, s if s < self.shards else self.parts - 1 - s) for s in stretches]
            halves.append(jax.lax.ppermute(part, self.axes, [move[::-1] for move in moves] if back else moves))
        return jnp.concatenate(halves, axis=axis)


class CausalRows(masks.LocalMask):
    """Splash's mask for queries at these positions, in any order, that see the last `window` keys or all before them.

    The borders of a block tell whether it is seen whole or not at all. This saves time: at 128 k tokens there are 65536
    blocks, and each is looked at several times.
    """

    def __init__(self, positions_T: np.ndarray, window: int | None) -> None:
        super().__init__((positions_T.size,) * 2, (None if window is None else window - 1, 0), 0)
        self.q_sequence = positions_T

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """The mask of a block, bool, as an array of the block's shape, or [1, 1] if it is the same everywhere."""
        rows, first, last = self.q_sequence[index[0]], index[1].start, index[1].stop - 1
        before = self.shape[1] if self.window_size[0] is None else self.window_size[0]
        if last <= rows.min() and first >= rows.max() - before:
            return np.ones((1, 1), np.bool_)
        if first > rows.max() or last < rows.min() - before:
            return np.zeros((1, 1), np.bool_)
        return super().__getitem__(index)
