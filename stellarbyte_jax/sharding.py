"""Maps logical axes to mesh axes by one table, makes the mesh, and places arrays on it."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from stellarbyte.errors import UserError
from stellarbyte_jax.config import MeshConfig

# Parameters name their logical axes where they are declared, activations where they are made; only this table says on
# which mesh axes these lie. data holds whole copies of the model; fsdp holds copies whose parameters are spread; expert
# is like data, but each of its devices has experts of its own; context splits a row's tokens; tensor splits the
# matrices of a layer. Mesh axes of one device do nothing, so one table serves every mesh; `mesh.rules` changes single
# lines of it.
LOGICAL_AXIS_RULES: Mapping[str, tuple[str, ...]] = {
    # of activations
    "batch": ("data", "fsdp", "expert"),
    "length": ("context",),
    # The residual stream and its norms: every tensor device would do the same work, so tokens are shared out instead.
    "residual_length": ("context", "tensor"),
    # of parameters and activations
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "feed_forward": ("tensor",),
    "expert": ("expert",),
    # of parameters
    "hidden": ("fsdp", "context"),
    "router": (),
    "norm": (),
    "rank": (),
    "layers": (),
}


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """A mesh of these sizes whose devices need not be here: enough to tell how an array is cut."""
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=_compiler_decides(sizes))


def _compiler_decides(axes: Collection[str]) -> tuple[AxisType, ...]:
    # The compiler places arrays that no constraint names; JAX 0.12's default would have the program place them.
    return (AxisType.Auto,) * len(axes)


_ONE_DEVICE = abstract_mesh({"data": 1})


@dataclass(frozen=True)
class Layout:
    """A mesh and the table from logical axes to it; by default one device. It is hashable, so models may hold it."""

    mesh: Mesh | AbstractMesh = _ONE_DEVICE
    overrides: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, config: MeshConfig, mesh: Mesh | AbstractMesh) -> "Layout":
        """The layout of `mesh` with the config's rules.

        Raises:
            UserError: `mesh.rules` has a rule for an axis that is not in the table.
        """
        for name in config.rules:
            if name not in LOGICAL_AXIS_RULES:
                raise UserError(f"mesh.rules {name} is no logical axis: these are {', '.join(LOGICAL_AXIS_RULES)}")
        return cls(mesh, tuple(sorted(config.rules.items())))

    def mesh_axes(self, axis: str) -> tuple[str, ...]:
        """The mesh axes of more than one device that a logical axis is split over."""
        rule = dict(self.overrides).get(axis, LOGICAL_AXIS_RULES[axis])
        return tuple(name for name in rule if self.mesh.shape.get(name, 1) > 1)

    def parts(self, axis: str) -> int:
        """The number of parts into which a logical axis is split."""
        return math.prod(self.mesh.shape[name] for name in self.mesh_axes(axis))

    def spec(self, *axes: str | None) -> PartitionSpec:
        """The PartitionSpec of an array with these logical axes; None stands for an axis that is not split.

        Raises:
            UserError: two of the axes lie on one mesh axis.
        """
        taken: dict[str, str] = {}
        entries: list[Any] = []
        for axis in axes:
            mesh_axes = () if axis is None else self.mesh_axes(axis)
            for name in mesh_axes:
                if name in taken:
                    raise UserError(
                        f"mesh.rules {axis} puts it on {name}, where {taken[name]} of the same array lies already: "
                        "give one of the two another mesh axis, or none with []"
                    )
                taken[name] = str(axis)
            entries.append(mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes or None)
        return PartitionSpec(*entries)

    def sharding(self, *axes: str | None) -> NamedSharding:
        """`spec` on this mesh; without axes, every device holds the whole array."""
        return NamedSharding(self.mesh, self.spec(*axes))

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """x, placed as these axes say; an axis that cannot be split evenly stays whole."""
        if self.mesh.size == 1:
            return x
        even = (
            axis if axis and size % self.parts(axis) == 0 else None for axis, size in zip(axes, x.shape, strict=True)
        )
        return jax.lax.with_sharding_constraint(x, self.sharding(*even))

    def map(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """`function`, run on each device's own part of the arrays; on one device `function` itself."""
        if self.mesh.size == 1:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


ONE_DEVICE = Layout()


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that `config` describes over `devices`, by default over all.

    Raises:
        UserError: the product of the axes is not the number of devices, or `slices` is not the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config, len(devices), "devices", "there are")
    grid = _device_slices(sizes, config.slices, devices) if config.slices > 1 else _grid(list(sizes.values()), devices)
    return Mesh(grid, tuple(sizes), axis_types=_compiler_decides(sizes))


def mesh_sizes(config: MeshConfig, count: int, noun: str, have: str) -> dict[str, int]:
    """Sizes of the mesh axes for `count` devices, with -1 replaced. `noun` and `have` are put into the error message.

    Raises:
        UserError: the product of the axes is not `count`.
    """
    known = math.prod(size for size in config.sizes.values() if size != -1)
    sizes = {name: count // known if size == -1 else size for name, size in config.sizes.items()}
    if math.prod(sizes.values()) != count:
        if -1 in config.sizes.values():
            needed, fix = f"a multiple of {known}", f"set sizes whose product divides the number of {noun}"
        else:
            needed, fix = str(known), f"set one axis to -1, or sizes whose product is the number of {noun}"
        raise UserError(f"mesh {config.sizes} needs {needed} {noun}, but {have} {count}: {fix}")
    return sizes


def axis_across_slices(sizes: Mapping[str, int], slices: int) -> str:
    """The one mesh axis that goes across slices, over the slow network: data if possible, otherwise fsdp.

    Raises:
        UserError: the number of slices divides neither.
    """
    for name in ("data", "fsdp"):
        if sizes[name] % slices == 0:
            return name
    raise UserError(
        f"mesh.slices {slices} divides neither mesh.data {sizes['data']} nor mesh.fsdp {sizes['fsdp']}: one of "
        "the two goes across slices"
    )


def _device_slices(sizes: dict[str, int], slices: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as a grid in which only one axis goes across slices."""
    crossing = axis_across_slices(sizes, slices)
    # CPUs know nothing of slices, or report 0 with several processes, so they are dealt out in order.
    per_slice = len(devices) // slices
    groups: dict[int, list[jax.Device]] = {}
    for index, device in enumerate(devices):
        known = None if device.platform == "cpu" else getattr(device, "slice_index", None)
        groups.setdefault(index // per_slice if known is None else known, []).append(device)
    if len(groups) != slices:
        raise UserError(f"mesh.slices {slices} is not the number of slices of these devices: set it to {len(groups)}")
    shape = [size // slices if name == crossing else size for name, size in sizes.items()]
    meshes = [_grid(shape, groups[index]) for index in sorted(groups)]
    return np.concatenate(meshes, axis=list(sizes).index(crossing))


def _grid(shape: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in this shape; devices along an axis are neighbours on the torus, as far as its sides allow."""
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:  # an axis is only part of a side
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def param_shardings(abstract_params: Any, layout: Layout) -> dict[str, Any]:
    """The sharding of each parameter of an abstract NNX state, as a nested dict like the parameters.

    Raises:
        UserError: a parameter's axis is not divisible by its mesh axes, or two of its axes lie on one mesh axis.
    """

    def sharding_of(path: tuple[Any, ...], param: nnx.Variable) -> NamedSharding:
        shape, axes = param.get_value().shape, param.get_metadata()["axes"]
        axes = ("layers",) * (len(shape) - len(axes)) + axes  # stacked layers have one axis more
        for size, axis in zip(shape, axes, strict=True):
            if size % layout.parts(axis):
                names = layout.mesh_axes(axis)
                sizes = " x ".join(f"mesh.{name} {layout.mesh.shape[name]}" for name in names)
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise UserError(
                    f"{sizes} does not divide {name} of shape {shape}: choose a size that divides every parameter's "
                    "axis"
                )
        return layout.sharding(*axes)

    variables = nnx.to_pure_dict(abstract_params, extract_fn=lambda variable: variable)
    return jax.tree_util.tree_map_with_path(sharding_of, variables, is_leaf=lambda node: isinstance(node, nnx.Variable))
