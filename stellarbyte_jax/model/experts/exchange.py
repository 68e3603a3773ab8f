"""Sends tokens to the devices that have their experts and back, by all-to-alls."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stellarbyte_jax.model.experts.rows import serve_rows
from stellarbyte_jax.sharding import Layout

# Capacity of one exchange round, as a multiple of a perfectly even share. A device that is asked for more is served in
# further rounds. A larger value wastes memory in every round; a smaller one makes a second round the rule.
_SHARES_A_ROUND = 1.5
_ROWS_MULTIPLE = 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def exchange_rows(
    gate_up_EDF: jax.Array,
    down_EFD: jax.Array,
    x_MD: jax.Array,
    weight_Mk: jax.Array,
    expert_Mk: jax.Array,
    hidden_act: str,
    layout: Layout,
) -> jax.Array:
    """The sum of weight · expert(x) over the choices of each row, float32 [M, D], where devices share out the experts.

    Each device has E experts. In every round a device sends each other device C of the (row, choice) pairs P = M · k
    that chose that device's experts, and receives C pairs from each. There are as many rounds as the fullest of all
    these queues needs, so that no token is dropped and arrays stay small for any load. The backward pass goes through
    the same rounds and computes the experts' outputs again.
    """
    plan = _plan(expert_Mk, down_EFD.shape[0], layout)

    def one_round(index: jax.Array, y_MD: jax.Array) -> jax.Array:
        x_JD, weight_J = plan.send(x_MD, index), plan.send(weight_Mk.reshape(-1), index)
        y_JD = _serve(gate_up_EDF, down_EFD, x_JD, weight_J, plan.experts(index), hidden_act)
        return y_MD + plan.fetch(y_JD, index).reshape(*expert_Mk.shape, -1).sum(axis=1, dtype=jnp.float32)

    return jax.lax.fori_loop(0, plan.rounds, one_round, jnp.zeros(x_MD.shape, jnp.float32))


def _forward(gate_up_EDF, down_EFD, x_MD, weight_Mk, expert_Mk, hidden_act, layout):  # type: ignore[no-untyped-def]
    operands = gate_up_EDF, down_EFD, x_MD, weight_Mk, expert_Mk
    return exchange_rows(*operands, hidden_act, layout), operands


def _backward(hidden_act, layout, operands, d_MD):  # type: ignore[no-untyped-def]
    gate_up_EDF, down_EFD, x_MD, weight_Mk, expert_Mk = operands
    plan, d_MD = _plan(expert_Mk, down_EFD.shape[0], layout), d_MD.astype(x_MD.dtype)

    def one_round(index: jax.Array, sums: Any) -> Any:
        x_JD, weight_J = plan.send(x_MD, index), plan.send(weight_Mk.reshape(-1), index)
        serve = functools.partial(_serve, expert_J=plan.experts(index), hidden_act=hidden_act)
        _, pull_back = jax.vjp(serve, gate_up_EDF, down_EFD, x_JD, weight_J)
        *d_experts, dx_JD, dweight_J = pull_back(plan.send(d_MD, index))
        dx_MD = plan.fetch(dx_JD, index).reshape(*expert_Mk.shape, -1).sum(axis=1, dtype=jnp.float32)
        dweight_Mk = plan.fetch(dweight_J, index).reshape(expert_Mk.shape)
        return jax.tree.map(jnp.add, sums, (*d_experts, dx_MD, dweight_Mk))

    zeros = tuple(jnp.zeros(operand.shape, jnp.float32) for operand in operands[:4])
    sums = jax.lax.fori_loop(0, plan.rounds, one_round, zeros)
    return *(total.astype(operand.dtype) for total, operand in zip(sums, operands[:4], strict=True)), None


exchange_rows.defvjp(_forward, _backward)


def _serve(gate_up_EDF, down_EFD, x_JD, weight_J, expert_J, hidden_act):  # type: ignore[no-untyped-def]
    """[J, D] in x's dtype: the outputs of this device's experts for the rows that came in; 0 for filler rows."""
    y_JD = serve_rows(gate_up_EDF, down_EFD, x_JD, weight_J[:, None], expert_J[:, None], hidden_act, everyone=False)
    return y_JD.astype(x_JD.dtype)


class _Plan(NamedTuple):
    """Which rows go to which device in which round.

    order_P: the pairs sorted by expert, so by device and expert. place_P: the place of each pair in that order.
    device_P: the device of each pair's expert. first_n: the place where each device's queue begins.
    sizes_nE: the number of pairs that come from each device for each expert here.
    rounds: the number of rounds, the same on all devices. capacity: C. axes: the mesh axes of the exchange.
    """

    order_P: jax.Array
    place_P: jax.Array
    device_P: jax.Array
    first_n: jax.Array
    sizes_nE: jax.Array
    rounds: jax.Array
    capacity: int
    axes: tuple[str, ...]

    def send(self, x: jax.Array, index: jax.Array) -> jax.Array:
        """Sends rows [M, …] or pairs [P] of this round; returns what came in from all devices, [n · C, …]."""
        place_nC = self.first_n[:, None] + index * self.capacity + jnp.arange(self.capacity)
        # Slots past the end of a queue carry another queue's rows as filler; the receiver recognises them because
        # `experts` gives them the index E.
        pair_nC = self.order_P[jnp.minimum(place_nC, self.order_P.size - 1)]
        return self._swap(x[pair_nC // (self.order_P.size // x.shape[0])])

    def experts(self, index: jax.Array) -> jax.Array:
        """The expert of each row that came in, E for filler: [n · C]."""
        place_C = index * self.capacity + jnp.arange(self.capacity)
        return jnp.sum(jnp.cumsum(self.sizes_nE, axis=1)[:, None] <= place_C[:, None], axis=-1).reshape(-1)

    def fetch(self, y_J: jax.Array, index: jax.Array) -> jax.Array:
        """The answers to the rows that `send` sent, by pairs [P, …]; 0 for pairs of other rounds."""
        n, capacity = self.first_n.size, self.capacity
        y_J = self._swap(y_J.reshape(n, capacity, *y_J.shape[1:]))
        slot_P = self.place_P - self.first_n[self.device_P] - index * capacity
        here_P = (slot_P >= 0) & (slot_P < capacity)
        y_P = y_J[self.device_P * capacity + jnp.clip(slot_P, 0, capacity - 1)]
        return jnp.where(here_P.reshape(-1, *(1,) * (y_P.ndim - 1)), y_P, 0)

    def _swap(self, x_nC: jax.Array) -> jax.Array:
        came_nC = jax.lax.all_to_all(x_nC, self.axes, 0, 0)
        return came_nC.reshape(-1, *came_nC.shape[2:])


def _plan(expert_Mk: jax.Array, E: int, layout: Layout) -> _Plan:
    axes, n = layout.mesh_axes("expert"), layout.parts("expert")
    (M, k), expert_P = expert_Mk.shape, expert_Mk.reshape(-1)
    order_P = jnp.argsort(expert_P, stable=True)
    sizes_nE = jnp.bincount(expert_P, length=n * E).reshape(n, E)
    count_n = sizes_nE.sum(axis=1)
    # A row chooses each expert at most once.
    capacity = min(M * min(k, E), round(_SHARES_A_ROUND * M * k / n))
    capacity = -(-capacity // _ROWS_MULTIPLE) * _ROWS_MULTIPLE
    # The maximum is over the whole mesh, not only over devices that exchange, so that all devices run in step.
    fullest = jax.lax.pmax(count_n.max(), layout.mesh.axis_names)
    return _Plan(
        order_P=order_P,
        place_P=jnp.argsort(order_P),
        device_P=expert_P // E,
        first_n=jnp.cumsum(count_n) - count_n,
        sizes_nE=jax.lax.all_to_all(sizes_nE, axes, 0, 0),
        rounds=-(-fullest // capacity),
        capacity=capacity,
        axes=axes,
    )
