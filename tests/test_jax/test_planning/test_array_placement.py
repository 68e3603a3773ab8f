"""Where arrays lie and what a chip multiplies and gets, against XLA's own partitioning and sums by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from stellarbyte_jax.planning.array_placement import Placement, place_of
from stellarbyte_jax.planning.chip_work import matmul_flops, received_bytes
from stellarbyte_jax.sharding import abstract_mesh

SIZES = {"data": 2, "tensor": 4}
ABSTRACT = abstract_mesh(SIZES)
P = PartitionSpec
B, T, D, N, H = 4, 64, 256, 8, 64

INPUTS = {
    "x": ((B, T, D), P("data")),
    "w_in": ((D, N * H), P("data", "tensor")),
    "w_out": ((N * H, D), P("tensor", "data")),
}


def attend(mesh, x, w_in, w_out):  # type: ignore[no-untyped-def]
    """Heads by tensor, then back: with the steps in between, and a gradient's product."""

    def lie(array, *axes):  # type: ignore[no-untyped-def]
        return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, P(*axes)))

    h = lie(x @ w_in, "data", None, "tensor")
    heads = h.reshape(B, T, N, H).transpose(0, 2, 1, 3)
    scores = jnp.einsum("BNTH,BNSH->BNTS", heads, heads)
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -1e9))
    out = jnp.einsum("BNTS,BNSH->BNTH", weights, heads).transpose(0, 2, 1, 3).reshape(B, T, N * H)
    y = lie(out @ w_out, "data", "tensor", None)
    return h, heads, scores, weights, out, y, jnp.sum(y, axis=-1), jnp.einsum("BTD,BTF->DF", x, h)


def traced():  # type: ignore[no-untyped-def]
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape, _ in INPUTS.values()]
    jaxpr = jax.make_jaxpr(partial(attend, ABSTRACT))(*shapes).jaxpr
    placement = Placement(SIZES)
    placement.follow(jaxpr, [place_of(spec, len(shape)) for shape, spec in INPUTS.values()])
    return jaxpr, placement


def test_xla_puts_arrays_where_we_do():
    mesh = jax.make_mesh(tuple(SIZES.values()), tuple(SIZES), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    inputs = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec)) for shape, spec in INPUTS.values()
    ]
    compiled = jax.jit(partial(attend, mesh)).lower(*inputs).compile()
    jaxpr, placement = traced()
    theirs = [
        sharding.shard_shape(var.aval.shape)
        for var, sharding in zip(jaxpr.outvars, compiled.output_shardings, strict=True)
    ]
    assert [placement.local_shape(var) for var in jaxpr.outvars] == theirs
    # Of one device's program; XLA counts elementwise work too.
    assert matmul_flops(jaxpr, placement, 0) == pytest.approx(compiled.cost_analysis()["flops"], rel=0.05)


@pytest.mark.parametrize(
    ("shape", "spec", "new_shape", "local"),
    [
        ((8, 6), P("data"), (2, 4, 6), (1, 4, 6)),
        ((8, 6), P("tensor"), (2, 4, 6), (2, 4, 6)),  # four parts of two cannot be
        ((2, 4, 6), P("data", "tensor"), (8, 6), (1, 6)),
        ((8, 6), P("data"), (1, 8, 1, 3, 2), (1, 4, 1, 3, 2)),
        ((8, 1, 6), P("data", None, "data"), (8, 6), (4, 3)),
    ],
)
def test_reshaping(shape, spec, new_shape, local):
    jaxpr = jax.make_jaxpr(lambda x: x.reshape(new_shape))(jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr
    placement = Placement(SIZES)
    placement.follow(jaxpr, [place_of(spec, len(shape))])
    assert placement.local_shape(jaxpr.outvars[0]) == local


def test_what_is_drawn_is_drawn_where_it_is_used():
    def drop(x):  # type: ignore[no-untyped-def]
        mask = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
        return jnp.where(mask, x, 0), mask

    jaxpr = jax.make_jaxpr(drop)(jax.ShapeDtypeStruct((8, 6), jnp.float32)).jaxpr
    placement = Placement(SIZES)
    placement.follow(jaxpr, [place_of(P("tensor"), 2)])
    assert [placement.local_shape(var) for var in jaxpr.outvars] == [(2, 6), (2, 6)]


@pytest.mark.parametrize(
    ("collective", "expected"),
    [
        (lambda x: jax.lax.all_gather(x, "tensor"), {"tensor": 3 * 96}),
        (lambda x: jax.lax.psum_scatter(x, "tensor", tiled=True), {"tensor": 3 * 24}),
        (lambda x: jax.lax.psum(x, "data"), {"data": 96}),
        (lambda x: jax.lax.all_to_all(x, "tensor", 0, 0), {"tensor": 72}),
        (lambda x: jax.lax.ppermute(x, "tensor", [(0, 1), (1, 0)]), {"tensor": 96}),
        # First along tensor, then what that made along data.
        (lambda x: jax.lax.all_gather(x, ("tensor", "data")), {"tensor": 3 * 192, "data": 96}),
        (lambda x: jax.lax.scan(lambda c, _: (jax.lax.psum(c, "data"), None), x, length=5)[0], {"data": 5 * 96}),
    ],
    ids=["gather", "scatter", "sum", "exchange", "pass on", "along two axes", "in a loop"],
)
def test_collectives(collective, expected):
    """Of [4, 6] float32, 96 bytes, on each chip."""
    program = jax.shard_map(collective, mesh=ABSTRACT, in_specs=P("tensor"), out_specs=P(), check_vma=False)
    jaxpr = jax.make_jaxpr(program)(jax.ShapeDtypeStruct((16, 6), jnp.float32)).jaxpr
    placement = Placement(SIZES)
    placement.follow(jaxpr, [place_of(P("tensor"), 2)])
    assert received_bytes(jaxpr, placement, SIZES) == pytest.approx(expected)


def test_what_a_shard_map_wants_more_of_is_gathered():
    program = jax.shard_map(lambda x: x, mesh=ABSTRACT, in_specs=P("data"), out_specs=P("data"))
    jaxpr = jax.make_jaxpr(program)(jax.ShapeDtypeStruct((16, 8), jnp.float32)).jaxpr
    placement = Placement(SIZES)
    placement.follow(jaxpr, [place_of(P("data", "tensor"), 2)])
    assert received_bytes(jaxpr, placement, SIZES) == {"tensor": 3 * 4 * 16 * 8 // 8}
