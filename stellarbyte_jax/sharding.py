"""The one table from logical axes to mesh axes, and the mesh."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stellarbyte_jax.config import MeshConfig
from stellarbyte_jax.errors import UserError

# Parameters name their axes where they are declared; only this table knows where those lie.
# data: whole copies; fsdp: copies whose parameters are spread; tensor: one layer's matrices split.
LOGICAL_AXIS_RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "vocab": "tensor",
    "hidden": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "feed_forward": "tensor",
    "expert": None,
    "router": None,
    "norm": None,
    "rank": None,
    "layers": None,
}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that `config` describes over `devices` (by default all).

    Raises:
        UserError: the axes' product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": config.data, "fsdp": config.fsdp, "tensor": config.tensor}
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {name: len(devices) // known if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"mesh {sizes} needs {math.prod(sizes.values()) or known} devices, but there are {len(devices)}: "
            "set one axis to -1, or sizes whose product is the number of devices"
        )
    axis_types = (jax.sharding.AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=axis_types, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch spread over the mesh."""
    return NamedSharding(mesh, PartitionSpec(LOGICAL_AXIS_RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(abstract_params: Any, mesh: Mesh) -> dict[str, Any]:
    """Where each parameter of an abstract NNX state lies, as a plain nested dict like the parameters.

    Raises:
        UserError: a parameter's axis is not divisible by its mesh axis.
    """

    def sharding_of(path: tuple[Any, ...], param: nnx.Variable) -> NamedSharding:
        shape, axes = param.get_value().shape, param.get_metadata()["axes"]
        axes = ("layers",) * (len(shape) - len(axes)) + axes  # stacked layers have one axis more
        spec = [LOGICAL_AXIS_RULES[axis] for axis in axes]
        for size, mesh_axis in zip(shape, spec, strict=True):
            if isinstance(mesh_axis, str) and size % mesh.shape[mesh_axis]:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise UserError(
                    f"mesh.{mesh_axis} {mesh.shape[mesh_axis]} does not divide {name} of shape {shape}: choose a size "
                    "that divides every parameter's axis"
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    variables = nnx.to_pure_dict(abstract_params, extract_fn=lambda variable: variable)
    return jax.tree_util.tree_map_with_path(sharding_of, variables, is_leaf=lambda node: isinstance(node, nnx.Variable))
