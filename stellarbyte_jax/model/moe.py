"""The sparse feed-forward layer: a router, and experts of which each token is sent to a few."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.feed_forward import FeedForward, gated
from stellarbyte_jax.model.grouped_matmul import grouped_matmul
from stellarbyte_jax.sharding import ONE_DEVICE, Layout


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RouterStats:
    """What a router did with each row of the batch, in float32 and over real tokens alone; 0 for a row that has none.

    balance: Switch's loss, E · Σ_i f_i P_i, with f_i the share of tokens that chose expert i (they sum to k) and P_i
    its mean probability (Fedus et al. 2021, arXiv:2101.03961); no gradient flows through f. z: the mean of
    logsumexp(logits)² (Zoph et al. 2022, arXiv:2202.08906). load: each expert's share of all choices. dropped: the
    share of choices that found their expert full.
    """

    balance_B: jax.Array
    z_B: jax.Array
    load_BE: jax.Array
    dropped_B: jax.Array


class Router(nnx.Module):
    """The experts' scores for each token, in float32 whatever the compute dtype."""

    def __init__(self, config: ByteConfig, *, rngs: nnx.Rngs) -> None:
        shape = (config.hidden_size, config.num_experts)
        kernel_DE = config.initializer_range * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.kernel = nnx.Param(kernel_DE, axes=("hidden", "router"))

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> float32 logits [B, T, E]."""
        # Below full precision, accelerators would send near ties to other experts than a CPU does.
        precision = jax.lax.Precision.HIGHEST
        return jnp.matmul(x_BTD.astype(jnp.float32), self.kernel[...], precision=precision)


class Experts(nnx.Module):
    """The gated feed-forward matrices of all experts, gate before up, stacked on E."""

    def __init__(
        self, config: ByteConfig, *, stddev: float, output_stddev: float, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        E, D, F = config.num_experts, config.hidden_size, config.moe_intermediate_size
        assert F is not None
        gate_up_EDF = stddev * jax.random.normal(rngs.params(), (E, D, 2 * F), jnp.float32)
        down_EFD = output_stddev * jax.random.normal(rngs.params(), (E, F, D), jnp.float32)
        self.gate_up_proj = nnx.Param(gate_up_EDF, axes=("expert", "hidden", "feed_forward"))
        self.down_proj = nnx.Param(down_EFD, axes=("expert", "feed_forward", "hidden"))
        self.hidden_act, self.dtype = config.hidden_act, dtype

    def __call__(self, x_PD: jax.Array, group_sizes_E: jax.Array) -> jax.Array:
        """[P, D] -> [P, D] of rows that are sorted by expert."""
        gate_up_PF = grouped_matmul(x_PD, self.gate_up_proj[...].astype(self.dtype), group_sizes_E)
        gate_PF, up_PF = jnp.split(gate_up_PF, 2, axis=-1)
        h_PF = gated(self.hidden_act, gate_PF, up_PF)
        return grouped_matmul(h_PF, self.down_proj[...].astype(self.dtype), group_sizes_E)


class SparseFeedForward(nnx.Module):
    """y = Σ weight · expert(x) over the k experts that the router scores highest, + the shared experts' output.

    The weights are the softmax over all experts, of the chosen; with `norm_topk_prob` they are divided by their sum.
    """

    def __init__(
        self,
        config: ByteConfig,
        *,
        stddev: float,
        output_stddev: float,
        dtype: jnp.dtype,
        layout: Layout = ONE_DEVICE,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.dtype, self.layout = config, dtype, layout
        self.gate = Router(config, rngs=rngs)
        self.experts = Experts(config, stddev=stddev, output_stddev=output_stddev, dtype=dtype, rngs=rngs)
        shared_width = config.num_shared_experts * (config.moe_intermediate_size or 0)
        self.shared_experts = (
            FeedForward(config, width=shared_width, stddev=stddev, output_stddev=output_stddev, dtype=dtype, rngs=rngs)
            if shared_width
            else None
        )

    def __call__(
        self,
        x_BTD: jax.Array,
        segment_ids_BT: jax.Array | None,
        training: bool,
        adapters_key: jax.Array | None = None,
    ) -> tuple[jax.Array, RouterStats]:
        """[B, T, D] -> [B, T, D].

        Tokens of segment 0 are padding: they get an output, but take no place in an expert and no part in statistics.
        In training an expert serves at most ceil(moe_capacity_factor · k · T / E) tokens of a row, the earliest first
        (and of a token its best choice first); the output of a full expert is left out.
        """
        config, k = self.config, self.config.num_experts_per_tok
        B, T, D = x_BTD.shape
        real_BT = jnp.ones((B, T), bool) if segment_ids_BT is None else segment_ids_BT != 0

        logits_BTE = self.gate(x_BTD)
        # By logits: two of them may differ where their probabilities are rounded to the same. Ties: the lower index.
        _, expert_BTk = jax.lax.top_k(jax.lax.stop_gradient(logits_BTE), k)
        probs_BTE = jax.nn.softmax(logits_BTE, axis=-1)
        weight_BTk = jnp.take_along_axis(probs_BTE, expert_BTk, axis=-1)
        if config.norm_topk_prob:
            weight_BTk = weight_BTk / weight_BTk.sum(axis=-1, keepdims=True)

        served_BTk = None
        if training and config.moe_capacity_factor is not None:
            capacity = math.ceil(config.moe_capacity_factor * k * T / config.num_experts)
            served_BTk = _served(expert_BTk, real_BT, config.num_experts, capacity)
            weight_BTk = jnp.where(served_BTk, weight_BTk, 0.0)

        x_MD = x_BTD.reshape(-1, D).astype(self.dtype)
        y_MD = self._route(x_MD, expert_BTk.reshape(-1, k), weight_BTk.reshape(-1, k))
        if self.shared_experts is not None:
            y_MD = y_MD + self.shared_experts(x_MD, adapters_key)
        return y_MD.reshape(B, T, D), _statistics(logits_BTE, probs_BTE, expert_BTk, served_BTk, real_BT)

    def _route(self, x_MD: jax.Array, expert_Mk: jax.Array, weight_Mk: jax.Array) -> jax.Array:
        """To the experts and back: the (token, choice) pairs P = M · k are sorted by expert, stably."""
        order_P = jnp.argsort(expert_Mk.reshape(-1), stable=True)
        inverse_P = jnp.argsort(order_P)
        group_sizes_E = jnp.bincount(expert_Mk.reshape(-1), length=self.config.num_experts)
        y_PD = self.experts(_dispatch(x_MD, order_P, inverse_P), group_sizes_E)
        y_MkD = _collect(y_PD, order_P, inverse_P).reshape(*expert_Mk.shape, -1)
        return jnp.einsum("MkD,Mk->MD", y_MkD, weight_Mk, preferred_element_type=jnp.float32).astype(self.dtype)


def _served(expert_BTk: jax.Array, real_BT: jax.Array, num_experts: int, capacity: int) -> jax.Array:
    """Which choices find a place: bool [B, T, k]. Each depends on earlier tokens of its row alone."""
    B, T, k = expert_BTk.shape
    chosen_BTkE = jax.nn.one_hot(expert_BTk, num_experts, dtype=jnp.int32) * real_BT[:, :, None, None]
    place_BTkE = jnp.cumsum(chosen_BTkE.reshape(B, T * k, -1), axis=1).reshape(chosen_BTkE.shape)
    return jnp.take_along_axis(place_BTkE, expert_BTk[..., None], axis=-1)[..., 0] <= capacity


def _statistics(
    logits_BTE: jax.Array,
    probs_BTE: jax.Array,
    expert_BTk: jax.Array,
    served_BTk: jax.Array | None,
    real_BT: jax.Array,
) -> RouterStats:
    (B, _, E), k = logits_BTE.shape, expert_BTk.shape[-1]
    tokens_B = jnp.maximum(real_BT.sum(axis=1, dtype=jnp.float32), 1)
    chosen_BTE = jax.nn.one_hot(expert_BTk, E, dtype=jnp.float32).sum(axis=2)
    choices_BE = jnp.sum(chosen_BTE * real_BT[..., None], axis=1) / tokens_B[:, None]
    prob_BE = jnp.sum(probs_BTE * real_BT[..., None], axis=1) / tokens_B[:, None]
    z_BT = jax.nn.logsumexp(logits_BTE, axis=-1) ** 2
    dropped_B = jnp.zeros((B,), jnp.float32)
    if served_BTk is not None:
        dropped_B = jnp.sum(~served_BTk & real_BT[..., None], axis=(1, 2), dtype=jnp.float32) / (k * tokens_B)
    return RouterStats(
        balance_B=E * jnp.sum(choices_BE * prob_BE, axis=-1),
        z_B=jnp.sum(z_BT * real_BT, axis=1) / tokens_B,
        load_BE=choices_BE / k,
        dropped_B=dropped_B,
    )


# Rows go to the experts and come back by gathers, in the backward pass too: the scatter-adds that autodiff would make
# of them are slow everywhere.
@jax.custom_vjp
def _dispatch(x_MD: jax.Array, order_P: jax.Array, _inverse_P: jax.Array) -> jax.Array:
    """Row by row what the sorted pairs need."""
    return x_MD[order_P // (order_P.shape[0] // x_MD.shape[0])]


def _dispatch_forward(x_MD, order_P, inverse_P):  # type: ignore[no-untyped-def]
    return _dispatch(x_MD, order_P, inverse_P), (inverse_P, x_MD.shape)


def _dispatch_backward(residuals, d_PD):  # type: ignore[no-untyped-def]
    inverse_P, (M, D) = residuals
    d_MD = d_PD[inverse_P].reshape(M, -1, D).sum(axis=1, dtype=jnp.float32)
    return d_MD.astype(d_PD.dtype), None, None


_dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@jax.custom_vjp
def _collect(y_PD: jax.Array, _order_P: jax.Array, inverse_P: jax.Array) -> jax.Array:
    """The sorted pairs' rows in the order of tokens and choices."""
    return y_PD[inverse_P]


_collect.defvjp(
    lambda y_PD, order_P, inverse_P: (y_PD[inverse_P], order_P), lambda order_P, d_PD: (d_PD[order_P], None, None)
)
