"""Tokens to the devices that have their experts and back, by all-to-alls."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stellarbyte_jax.model.experts.rows import serve_rows
from stellarbyte_jax.sharding import Layout

# What a device sends another in a round, in even shares of its tokens: an uneven load takes further rounds. More would
# make the usual round's arrays larger, less would make one round rarely enough.
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
    """Each row's sum of weight · expert(x) over its choices, float32 [M, D], where devices share out the experts.

    A device has E of them. Each round it sends every other C of the (row, choice) pairs P = M · k that chose that one's
    experts, and gets C from each; there are as many rounds as the fullest of all these queues needs, so that no token
    is lost and arrays are small, however uneven the load. The backward pass goes the same rounds and works the experts'
    outputs out again.
    """
    plan = _plan(expert_Mk, down_EFD.shape[0], layout)

    def one_round(index: jax.Array, y_MD: jax.Array) -> jax.Array:
        x_RD, weight_R = plan.send(x_MD, index), plan.send(weight_Mk.reshape(-1), index)
        y_RD = _serve(gate_up_EDF, down_EFD, x_RD, weight_R, plan.experts(index), hidden_act)
        return y_MD + plan.fetch(y_RD, index).reshape(*expert_Mk.shape, -1).sum(axis=1, dtype=jnp.float32)

    return jax.lax.fori_loop(0, plan.rounds, one_round, jnp.zeros(x_MD.shape, jnp.float32))


def _forward(gate_up_EDF, down_EFD, x_MD, weight_Mk, expert_Mk, hidden_act, layout):  # type: ignore[no-untyped-def]
    operands = gate_up_EDF, down_EFD, x_MD, weight_Mk, expert_Mk
    return exchange_rows(*operands, hidden_act, layout), operands


def _backward(hidden_act, layout, operands, d_MD):  # type: ignore[no-untyped-def]
    gate_up_EDF, down_EFD, x_MD, weight_Mk, expert_Mk = operands
    plan, d_MD = _plan(expert_Mk, down_EFD.shape[0], layout), d_MD.astype(x_MD.dtype)

    def one_round(index: jax.Array, sums: Any) -> Any:
        x_RD, weight_R = plan.send(x_MD, index), plan.send(weight_Mk.reshape(-1), index)
        serve = functools.partial(_serve, expert_R=plan.experts(index), hidden_act=hidden_act)
        _, pull_back = jax.vjp(serve, gate_up_EDF, down_EFD, x_RD, weight_R)
        *d_experts, dx_RD, dweight_R = pull_back(plan.send(d_MD, index))
        dx_MD = plan.fetch(dx_RD, index).reshape(*expert_Mk.shape, -1).sum(axis=1, dtype=jnp.float32)
        dweight_Mk = plan.fetch(dweight_R, index).reshape(expert_Mk.shape)
        return jax.tree.map(jnp.add, sums, (*d_experts, dx_MD, dweight_Mk))

    zeros = tuple(jnp.zeros(operand.shape, jnp.float32) for operand in operands[:4])
    sums = jax.lax.fori_loop(0, plan.rounds, one_round, zeros)
    return *(total.astype(operand.dtype) for total, operand in zip(sums, operands[:4], strict=True)), None


exchange_rows.defvjp(_forward, _backward)


def _serve(gate_up_EDF, down_EFD, x_RD, weight_R, expert_R, hidden_act):  # type: ignore[no-untyped-def]
    """[R, D] in x's dtype: what these experts make of the rows that came, 0 of those for none of them."""
    y_RD = serve_rows(gate_up_EDF, down_EFD, x_RD, weight_R[:, None], expert_R[:, None], hidden_act, everyone=False)
    return y_RD.astype(x_RD.dtype)


class _Plan(NamedTuple):
    """Who sends whom what in which round.

    order_P: the pairs by expert, so by device and expert. place_P: each pair's place in that order, device_P its
    expert's device. first_n, count_n: where each device's queue begins, and how long it is. sizes_nE: how many come
    from each device for each expert here. rounds: the same on all devices.
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
        """Rows [M, …] or pairs [P] to where this round takes them: [n · C, …] from all devices."""
        place_nC = self.first_n[:, None] + index * self.capacity + jnp.arange(self.capacity)
        # Behind the end of a queue goes what belongs to another: whoever gets it knows by `experts`.
        pair_nC = self.order_P[jnp.minimum(place_nC, self.order_P.size - 1)]
        return self._swap(x[pair_nC // (self.order_P.size // x.shape[0])])

    def experts(self, index: jax.Array) -> jax.Array:
        """Which expert each row that came in is for, E for none: [n · C]."""
        place_C = index * self.capacity + jnp.arange(self.capacity)
        return jnp.sum(jnp.cumsum(self.sizes_nE, axis=1)[:, None] <= place_C[:, None], axis=-1).reshape(-1)

    def fetch(self, y_R: jax.Array, index: jax.Array) -> jax.Array:
        """The answers to what `send` took, by pairs [P, …]; 0 for pairs of other rounds."""
        n, capacity = self.first_n.size, self.capacity
        y_R = self._swap(y_R.reshape(n, capacity, *y_R.shape[1:]))
        slot_P = self.place_P - self.first_n[self.device_P] - index * capacity
        here_P = (slot_P >= 0) & (slot_P < capacity)
        y_P = y_R[self.device_P * capacity + jnp.clip(slot_P, 0, capacity - 1)]
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
    # A row chooses an expert once.
    capacity = min(M * min(k, E), round(_SHARES_A_ROUND * M * k / n))
    capacity = -(-capacity // _ROWS_MULTIPLE) * _ROWS_MULTIPLE
    # Over the whole mesh, not only among those that exchange: all devices then run the same program in step.
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
