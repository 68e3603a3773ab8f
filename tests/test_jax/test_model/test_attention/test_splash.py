"""Splash on a mesh, interpreted, against itself on one device: rows, kv heads and the rows' tokens shared out."""

import jax
import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.config import MeshConfig
from stellarbyte_jax.model.attention.kernels import attention
from stellarbyte_jax.model.attention.shared_rows import SharedRows
from stellarbyte_jax.model.attention.splash import block_of
from stellarbyte_jax.sharding import Layout, make_mesh
from test_jax.test_model.test_attention.test_kernels import inputs, packed_segments
from test_jax.tiny import relative_error
from tiers import short_tier


def run(layout: Layout, T: int, window: int | None, packed: bool, kernel: str = "splash", block_size: int = 512):
    q, k, v, weight = inputs(2, 2, T, T)
    ids = packed_segments(T) if packed else None

    @jax.jit
    def attend(q, k, v):
        def attended(q, k, v):
            sizes = {"block_size": block_size, "window": window}
            return attention(q, k, v, kernel=kernel, segment_ids_BT=ids, layout=layout, **sizes)

        out, pull_back = jax.vjp(attended, q, k, v)
        return out, *pull_back(jax.numpy.asarray(weight))

    return attend(q, k, v)


@pytest.mark.parametrize(
    ("mesh", "T", "window", "packed"),
    short_tier(
        [
            (MeshConfig(data=2, tensor=2), 128, None, True),
            (MeshConfig(fsdp=2, data=1), 256, 100, False),
            (MeshConfig(data=1, context=2, tensor=2), 512, None, True),
            (MeshConfig(data=2, context=2), 512, 130, True),
        ],
        2,
    ),
)
def test_a_mesh_changes_nothing(mesh: MeshConfig, T: int, window: int | None, packed: bool) -> None:
    devices = abs(mesh.data * mesh.fsdp * mesh.context * mesh.tensor)
    spread = run(Layout(make_mesh(mesh, jax.devices()[:devices])), T, window, packed)
    for ours, alone in zip(spread, run(Layout(), T, window, packed), strict=True):
        assert relative_error(ours, alone) < 1e-6
    assert spread[0].sharding.num_devices == devices


def test_smaller_blocks_change_nothing() -> None:
    smaller = run(Layout(), 256, 100, True, block_size=128)
    for ours, plain in zip(smaller, run(Layout(), 256, 100, True, kernel="reference"), strict=True):
        assert relative_error(ours, plain) < 1e-5


@pytest.mark.parametrize(
    ("largest", "T", "block"), [(512, 2048, 512), (2048, 768, 256), (512, 640, 128), (128, 512, 128)]
)
def test_the_largest_block_that_divides_a_part(largest: int, T: int, block: int) -> None:
    assert block_of(largest, T, SharedRows((), 1, False)) == block
    assert block_of(largest, 4 * T, SharedRows(("context",), 2, True)) == block


def test_what_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(UserError, match=r"mesh\.tensor 4 does not divide model\.num_key_value_heads 2"):
        run(Layout(make_mesh(MeshConfig(data=2, tensor=4))), 128, None, False)
    split = Layout(make_mesh(MeshConfig(data=2, context=4)))
    with pytest.raises(UserError, match=r"multiple of 128 tokens on each of mesh\.context's 4 devices, not 256"):
        run(split, 256, None, False)
    with pytest.raises(UserError, match=r"cudnn sees whole rows only, and mesh\.context splits them"):
        run(split, 256, None, False, kernel="cudnn")


def test_cudnns_way_on_a_mesh_changes_nothing() -> None:
    spread = run(Layout(make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])), 64, 20, True, kernel="cudnn")
    for ours, alone in zip(spread, run(Layout(), 64, 20, True, kernel="cudnn"), strict=True):
        assert relative_error(ours, alone) < 1e-6
