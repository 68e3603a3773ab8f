"""The mesh, and where each parameter lies on it."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from stellarbyte_jax.config import MeshConfig
from stellarbyte_jax.errors import UserError
from stellarbyte_jax.sharding import batch_sharding, make_mesh, param_shardings, replicated
from stellarbyte_jax.training.state import abstract_model
from test_jax.tiny import tiny_config, tiny_params


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(data=1, fsdp=-1), (1, 8, 1)),
        (MeshConfig(data=2, fsdp=2, tensor=2), (2, 2, 2)),
        (MeshConfig(data=-1, fsdp=2, tensor=2), (2, 2, 2)),
    ],
)
def test_one_axis_takes_what_the_others_leave(config: MeshConfig, sizes: tuple[int, int, int]) -> None:
    assert dict(make_mesh(config).shape) == dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(data=-1, fsdp=3), MeshConfig(data=-1, fsdp=16)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(config: MeshConfig) -> None:
    with pytest.raises(UserError, match="but there are 8: set one axis to -1, or sizes whose product is"):
        make_mesh(config)


def test_parameters_lie_where_their_axes_say() -> None:
    _, abstract = abstract_model(tiny_config(xpos_learnable=True))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = param_shardings(abstract, mesh)
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
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rows = jax.device_put(np.arange(24).reshape(8, 3), batch_sharding(mesh))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 3)}
    assert jax.device_put(np.arange(3), replicated(mesh)).sharding.is_fully_replicated


def test_an_axis_that_its_mesh_axis_does_not_divide_is_refused() -> None:
    _, abstract = abstract_model(tiny_config(vocab_size=41))
    with pytest.raises(UserError, match=r"mesh\.tensor 2 does not divide lm_head/kernel of shape \(16, 41\)"):
        param_shardings(abstract, make_mesh(MeshConfig(tensor=2)))
