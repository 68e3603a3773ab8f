"""What is predicted to stand in memory at once is what the compiler was seen to keep."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from stellarbyte_jax.planning.array_placement import Placement, place_of
from stellarbyte_jax.planning.compile_ahead import compile_ahead
from stellarbyte_jax.planning.one_device import _Device
from stellarbyte_jax.planning.standing_arrays import standing_bytes, standing_in_layer
from stellarbyte_jax.planning.topology import parse_topology
from stellarbyte_jax.sharding import abstract_mesh
from test_jax.test_planning.conftest import make_run

SIZES = {"data": 2, "tensor": 4}
ABSTRACT = abstract_mesh(SIZES)
T, D, F = 64, 8, 32


def test_what_stands_at_once():
    """The first product is there until the second is made; what is elementwise is worked out where it is read."""

    def products(a, b, c):  # type: ignore[no-untyped-def]
        first = jnp.tanh(a @ b)
        second = jax.jit(lambda x: (x * 2) @ c)(first)
        return jnp.sum(second), second

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 16), (16, 32), (32, 4))]
    jaxpr = jax.make_jaxpr(products)(*shapes).jaxpr
    assert standing_bytes(jaxpr, Placement({}), pad=False) == 4 * (math.prod((8, 32)) + math.prod((8, 4)))


def test_what_two_arrays_make_takes_their_place():
    """gate · up, read twice, stands for both; read once, it is worked out of them where it is read."""

    def gated(a, gate, up, down):  # type: ignore[no-untyped-def]
        h = (a @ gate) * (a @ up)
        return h @ down, jnp.sum(h @ down @ down.T)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 16), (16, 32), (16, 32), (32, 2))]
    jaxpr = jax.make_jaxpr(gated)(*shapes).jaxpr
    assert standing_bytes(jaxpr, Placement({}), pad=False) == 4 * 3 * 8 * 32


def test_what_a_constraint_gathers_stands():
    whole = NamedSharding(ABSTRACT, P("data"))
    shapes = [jax.ShapeDtypeStruct((8, 16), jnp.float32)] * 2
    jaxpr = jax.make_jaxpr(lambda x, w: jax.lax.with_sharding_constraint(x, whole) * w)(*shapes).jaxpr
    placement = Placement(SIZES)
    placement.follow(jaxpr, [place_of(P("data", "tensor"), 2), place_of(P("data"), 2)])
    assert standing_bytes(jaxpr, placement, pad=False) == 4 * 4 * 16


def in_layer(backward, *shapes, kept=(), again=False):
    """What stands in a layer that hands on its first input, in numbers of float32."""
    jaxpr = jax.make_jaxpr(backward)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).jaxpr
    return standing_in_layer(jaxpr, range(1), kept, Placement({}), again=again, pad=False) // 4


def test_gradients_of_weights_come_last():
    """Until then the gradient that they are computed from stands, though the program is done with it earlier."""

    def backward(dy, x, w1, w2):  # type: ignore[no-untyped-def]
        dh = dy @ w2.T
        dw1 = x.T @ dh
        return dh @ w1.T @ w1 @ w1.T, dw1

    shapes = (T, D), (T, D), (D, F), (F, D)
    jaxpr = jax.make_jaxpr(backward)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).jaxpr
    # In the order of the program the gradient goes, and two products stand: here with the third beside it.
    assert standing_bytes(jaxpr, Placement({}), pad=False) // 4 == T * D + T * F
    assert in_layer(backward, *shapes) == T * F + T * D + T * F


@pytest.mark.parametrize(("readings", "beside"), [(1, T * D), (2, T * D + D * D)])
def test_a_slice_that_is_read_again_is_copied(readings, beside):
    """Beside dy stands dx, and later a weight's gradient and, if two are computed from it, the slice of x."""

    def backward(dy, x, w):  # type: ignore[no-untyped-def]
        return dy @ w.T, *(x.T @ (dy * number) for number in range(readings))

    assert in_layer(backward, (T, D), (T, D), (D, D), kept={1}) == T * D + beside


@pytest.mark.parametrize(("needed", "beside"), [(False, 0), (True, 2 * T * D + D * F)])
def test_what_is_elementwise_is_made_where_it_is_read_if_that_takes_no_more(needed, beside):
    """dh · gate takes the place of dh; but where the gate is needed later, dh stands beside it, and no product."""

    def backward(dy, gate, down, up):  # type: ignore[no-untyped-def]
        dh = (dy @ down.T) * gate
        dx = dh @ up.T
        return dx, dh.T @ dx, gate.T @ dy if needed else dx[0]

    assert in_layer(backward, (T, D), (T, F), (F, D), (D, F), kept={1}) == 2 * T * F + beside


@pytest.mark.long
@pytest.mark.parametrize(("remat", "rows"), [("none", 8), ("dots", 8), ("save_attention", 16), ("full", 16)])
def test_the_real_compiler_keeps_as_much(remat, rows):
    """A train step on one chip, as docs/measured.md has it."""
    pytest.importorskip("libtpu")
    shape = {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 4, "max_position_embeddings": 2048}
    training = {"batch_size": rows, "dtype": "bfloat16", "remat": remat}
    run = make_run(2048, training, **shape | heads | {"xpos_scale_base": 512.0})
    compiled = compile_ahead(run, parse_topology("v5e:1x1"))
    assert _Device(run, "tpu").memory(remat, rows).total == pytest.approx(compiled.peak, rel=0.05)
