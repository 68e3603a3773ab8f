"""The mesh, and where each parameter lies on it."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from stellarbyte.errors import UserError
from stellarbyte_jax import sharding
from stellarbyte_jax.config import MeshConfig
from stellarbyte_jax.sharding import Layout, make_mesh, param_shardings
from stellarbyte_jax.training.state import abstract_model
from test_jax.tiny import tiny_config, tiny_params


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(), (8, 1, 1, 1, 1)),
        (MeshConfig(data=1, fsdp=-1), (1, 8, 1, 1, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 1, 1, 2)),
        (MeshConfig(data=-1, expert=2, context=2), (2, 1, 2, 2, 1)),
    ],
)
def test_one_axis_takes_what_the_others_leave(config: MeshConfig, sizes: tuple[int, ...]) -> None:
    names = ("data", "fsdp", "expert", "context", "tensor")
    assert dict(make_mesh(config).shape) == dict(zip(names, sizes, strict=True))


@pytest.mark.parametrize(
    ("config", "crossing"),
    [(MeshConfig(fsdp=2, tensor=2, slices=2), "data"), (MeshConfig(data=1, fsdp=4, tensor=2, slices=4), "fsdp")],
)
def test_slices_are_crossed_by_data_or_else_fsdp(config: MeshConfig, crossing: str) -> None:
    mesh = make_mesh(config)
    slice_of = np.vectorize(lambda device: device.id // (8 // config.slices))(mesh.devices)
    axis = mesh.axis_names.index(crossing)
    along = np.moveaxis(slice_of, axis, 0).reshape(mesh.devices.shape[axis], -1)
    assert (along == along[:, :1]).all()
    assert len(set(along[:, 0].tolist())) == config.slices


def test_slices_that_no_axis_can_cross_are_refused() -> None:
    with pytest.raises(UserError, match=r"mesh\.slices 2 divides neither mesh\.data 1 nor mesh\.fsdp 1"):
        make_mesh(MeshConfig(data=1, tensor=8, slices=2))


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a device of a TPU pod says of itself."""

    id: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5p"
    process_index: int = 0


def test_an_axis_may_be_part_of_a_side_of_the_torus(monkeypatch: pytest.MonkeyPatch) -> None:
    chips = [Chip(id, coords) for id, coords in enumerate(itertools.product(range(4), repeat=3))]
    monkeypatch.setattr(sharding, "Mesh", lambda grid, *_, **__: grid)
    grid = make_mesh(MeshConfig(data=1, fsdp=32, tensor=2), chips).reshape(32, 2)
    assert sorted(chip.id for chip in grid.flat) == list(range(64))
    for first, second in grid:
        assert sum(abs(a - b) for a, b in zip(first.coords, second.coords, strict=True)) == 1


def test_rules_change_single_lines_of_the_table() -> None:
    config = MeshConfig(data=1, fsdp=2, tensor=4, rules={"vocab": (), "hidden": ("tensor", "fsdp"), "heads": ()})
    layout = Layout.of(config, make_mesh(config))
    assert layout.spec("vocab", "hidden") == PartitionSpec(None, ("tensor", "fsdp"))
    assert layout.parts("hidden") == 8
    with pytest.raises(UserError, match=r"mesh\.rules kv_heads puts it on tensor, where hidden of the same array lies"):
        layout.spec("hidden", "kv_heads")
    with pytest.raises(UserError, match=r"mesh\.rules width is no logical axis: these are batch, length"):
        Layout.of(MeshConfig(rules={"width": ("data",)}), layout.mesh)
    with pytest.raises(UserError, match=r"mesh\.rules\.hidden model is no mesh axis: use data, fsdp"):
        MeshConfig(rules={"hidden": ("model",)})


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (MeshConfig(data=3), "needs 3 devices, but there are 8: set one axis to -1, or sizes whose product is"),
        (
            MeshConfig(data=-1, fsdp=3),
            "needs a multiple of 3 devices, but there are 8: set sizes whose product divides",
        ),
        (MeshConfig(data=-1, fsdp=16), "'data': -1, .* needs a multiple of 16 devices, but there are 8"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(config: MeshConfig, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        make_mesh(config)


def test_parameters_lie_where_their_axes_say() -> None:
    _, abstract = abstract_model(tiny_config(xpos_learnable=True))
    shardings = param_shardings(abstract, Layout(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))))
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
    attention, mlp = specs["model"]["layers"]["self_attn"], specs["model"]["layers"]["mlp"]
    assert attention["q_proj"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert attention["k_proj"]["kernel"] == attention["v_proj"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert attention["o_proj"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert mlp["gate_proj"]["kernel"] == mlp["up_proj"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert mlp["down_proj"]["kernel"] == PartitionSpec(None, "tensor", "fsdp")
    assert specs["model"]["layers"]["input_layernorm"]["scale"] == PartitionSpec(None, None)
    assert specs["model"]["embed_tokens"]["embedding"] == PartitionSpec("tensor", "fsdp")
    assert specs["lm_head"]["kernel"] == PartitionSpec("fsdp", "tensor")
    assert specs["model"]["rotary_emb"]["zeta"] == PartitionSpec(None)

    params = tiny_params(tiny_config(xpos_learnable=True))
    placed = jax.device_put(params, shardings)
    kernel = placed["model"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, placed, params)))


def test_rows_are_spread_over_data_and_fsdp() -> None:
    layout = Layout(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    rows = jax.device_put(np.arange(24).reshape(8, 3), layout.sharding("batch", "length"))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 3)}
    assert jax.device_put(np.arange(3), layout.sharding()).sharding.is_fully_replicated


def test_an_axis_that_its_mesh_axis_does_not_divide_is_refused() -> None:
    _, abstract = abstract_model(tiny_config(vocab_size=41))
    with pytest.raises(UserError, match=r"mesh\.tensor 2 does not divide lm_head/kernel of shape \(16, 41\)"):
        param_shardings(abstract, Layout(make_mesh(MeshConfig(tensor=2))))
