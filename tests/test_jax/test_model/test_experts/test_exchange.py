"""Four devices that share out the experts against one that has all, whether the load is even or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stellarbyte_jax.config import MeshConfig
from stellarbyte_jax.model.experts.exchange import _plan, exchange_rows
from stellarbyte_jax.model.experts.rows import serve_rows
from stellarbyte_jax.sharding import Layout, make_mesh
from test_jax.tiny import relative_error
from tiers import short_tier

M, E, D, F = 48, 8, 6, 5


def choices(kind: str, k: int) -> np.ndarray:
    """Whom each of four devices' tokens choose: all alike often, all the same, or one device others than the rest."""
    scores = np.random.default_rng(0).random((M, E))
    if kind == "one device has all":
        scores[:, 2:4] += 1
    if kind == "one device's tokens go elsewhere":
        scores[: M // 4, 6:] += 1
    return np.argsort(-scores, axis=1)[:, :k].astype(np.int32)


@pytest.mark.parametrize(
    ("kind", "k", "rounds"),
    short_tier([("one device has all", 2, 2), ("one device's tokens go elsewhere", 1, 2), ("even", E, 1)], 1),
)
def test_it_is_what_one_device_does(kind: str, k: int, rounds: int) -> None:
    layout = Layout(make_mesh(MeshConfig(data=1, expert=4), jax.devices()[:4]))
    generator = np.random.default_rng(1)
    gate_up, down, x_MD, weight_Mk, d_MD = (
        jnp.asarray(generator.normal(size=shape), jnp.float32)
        for shape in [(E, D, 2 * F), (E, F, D), (M, D), (M, k), (M, D)]
    )
    expert_Mk = jnp.asarray(choices(kind, k))

    rows, experts = layout.spec("batch"), layout.spec("expert")

    def ours(gate_up, down, x_MD, weight_Mk):
        exchange = functools.partial(exchange_rows, hidden_act="silu", layout=layout)
        return layout.map(exchange, (experts, experts, rows, rows, rows), rows)(
            gate_up, down, x_MD, weight_Mk, expert_Mk
        )

    def theirs(gate_up, down, x_MD, weight_Mk):
        return serve_rows(gate_up, down, x_MD, weight_Mk, expert_Mk, "silu")

    def with_gradients(serve, *operands):
        y_MD, pull_back = jax.vjp(serve, *operands)
        return y_MD, *pull_back(d_MD)

    def run(serve):
        step = jax.jit(functools.partial(with_gradients, serve), compiler_options={"xla_backend_optimization_level": 0})
        return step(gate_up, down, x_MD, weight_Mk)

    actual, expected = run(ours), run(theirs)
    assert max(map(relative_error, actual, expected)) < 1e-5
    counted = layout.map(lambda expert_Mk: _plan(expert_Mk, E // 4, layout).rounds, rows, layout.spec())
    assert int(jax.jit(counted)(expert_Mk)) == rounds
