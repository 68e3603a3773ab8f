"""The sparse feed-forward layer: a router sends each token to a few of many experts."""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from stellarbyte.architecture import ByteConfig
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.experts.device import serve_experts
from stellarbyte_jax.model.feed_forward import FeedForward
from stellarbyte_jax.model.linear import used
from stellarbyte_jax.model.taps import Taps, tapped_experts


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RouterStats:
    """A router's statistics for each row of the batch, in float32, over real tokens; 0 for a row without real tokens.

    balance: Switch's loss, E · Σ_i f_i P_i, where f_i is the share of tokens that chose expert i (they sum to k) and
    P_i its mean probability (Fedus et al. 2021, arXiv:2101.03961); no gradient flows through f.
    z: the mean of logsumexp(logits)² (Zoph et al. 2022, arXiv:2202.08906).
    load: each expert's share of all choices. dropped: the share of choices whose expert was full.
    """

    balance_B: jax.Array
    z_B: jax.Array
    load_BE: jax.Array
    dropped_B: jax.Array


class Router(nnx.Module):
    """Scores the experts for each token, in float32 for any compute dtype."""

    def __init__(self, config: ByteConfig, *, rngs: nnx.Rngs) -> None:
        shape = (config.hidden_size, config.num_experts)
        kernel_DE = config.initializer_range * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.kernel = nnx.Param(kernel_DE, axes=("hidden", "router"), decays=True)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> float32 logits [B, T, E]."""
        # With less precision, accelerators would send near ties to other experts than a CPU does.
        precision = jax.lax.Precision.HIGHEST
        return jnp.matmul(x_BTD.astype(jnp.float32), self.kernel[...], precision=precision)


class Experts(nnx.Module):
    """The gated feed-forward matrices of all experts, stacked over E; gate comes before up."""

    def __init__(
        self,
        config: ByteConfig,
        *,
        stddev: float,
        output_stddev: float,
        execution: Execution,
        rngs: nnx.Rngs,
    ) -> None:
        E, D, F = config.num_experts, config.hidden_size, config.moe_intermediate_size
        assert F is not None
        gate_up_EDF = stddev * jax.random.normal(rngs.params(), (E, D, 2 * F), jnp.float32)
        down_EFD = output_stddev * jax.random.normal(rngs.params(), (E, F, D), jnp.float32)
        self.gate_up_proj = nnx.Param(gate_up_EDF, axes=("expert", "hidden", "feed_forward"), decays=True)
        self.down_proj = nnx.Param(down_EFD, axes=("expert", "feed_forward", "hidden"), decays=True)
        self.config, self.dtype, self.layout = config, jnp.dtype(execution.dtype), execution.layout
        self.weight_grid = execution.weight_grid

    def __call__(self, x_BTD: jax.Array, expert_BTk: jax.Array, weight_BTk: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]: the sum of weight · expert(x) for each token."""
        layout, (E, D, _) = self.layout, self.gate_up_proj.get_value().shape
        rows = layout.spec("batch", "length", None)
        gate_up, down = (
            layout.spec("expert", "hidden", None, "feed_forward"),
            layout.spec("expert", "feed_forward", "hidden"),
        )
        # Gate and up get an axis of their own, so that a device has the same part of both.
        gate_up_ED2F = used(self.gate_up_proj[...], self.weight_grid, self.dtype).reshape(E, D, 2, -1)
        down_EFD = used(self.down_proj[...], self.weight_grid, self.dtype)
        serve = layout.map(
            functools.partial(serve_experts, hidden_act=self.config.hidden_act, layout=layout),
            (gate_up, down, rows, rows, rows),
            rows,
        )
        return serve(gate_up_ED2F, down_EFD, x_BTD, expert_BTk, weight_BTk)


class SparseFeedForward(nnx.Module):
    """y = Σ weight · expert(x) over the k experts that the router scores highest, plus the shared experts' output.

    The weights are the chosen experts' probabilities in the softmax over all experts; with `norm_topk_prob` they are
    divided by their sum.
    """

    def __init__(
        self,
        config: ByteConfig,
        *,
        stddev: float,
        output_stddev: float,
        execution: Execution,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.dtype = config, jnp.dtype(execution.dtype)
        self.gate = Router(config, rngs=rngs)
        self.experts = Experts(config, stddev=stddev, output_stddev=output_stddev, execution=execution, rngs=rngs)
        shared_width = config.num_shared_experts * (config.moe_intermediate_size or 0)
        self.shared_experts = (
            FeedForward(
                config,
                width=shared_width,
                stddev=stddev,
                output_stddev=output_stddev,
                execution=execution,
                rngs=rngs,
            )
            if shared_width
            else None
        )

    def __call__(
        self,
        x_BTD: jax.Array,
        segment_ids_BT: jax.Array | None,
        training: bool,
        taps: Taps | None = None,
    ) -> tuple[jax.Array, RouterStats]:
        """[B, T, D] -> [B, T, D].

        Tokens of segment 0 are padding: they get an output, but take no place in an expert and no part in statistics.
        In training an expert serves at most ceil(moe_capacity_factor · k · T / E) tokens of a row, the earliest first
        (and of a token its best choice first); the output of a full expert is left out.
        """
        config, k = self.config, self.config.num_experts_per_tok
        B, T, _ = x_BTD.shape
        real_BT = jnp.ones((B, T), bool) if segment_ids_BT is None else segment_ids_BT != 0

        logits_BTE = self.gate(x_BTD)
        # Logits decide, as two of them may differ where probabilities round to the same. Ties go to the lower index.
        _, expert_BTk = jax.lax.top_k(jax.lax.stop_gradient(logits_BTE), k)
        probs_BTE = jax.nn.softmax(logits_BTE, axis=-1)
        if config.norm_topk_prob:
            # This is p / sum(p) of the chosen, rounded once: a single expert then has weight 1 and gradient 0.
            weight_BTk = jax.nn.softmax(jnp.take_along_axis(logits_BTE, expert_BTk, axis=-1), axis=-1)
        else:
            weight_BTk = jnp.take_along_axis(probs_BTE, expert_BTk, axis=-1)

        served_BTk = None
        if training and config.moe_capacity_factor is not None:
            capacity = math.ceil(config.moe_capacity_factor * k * T / config.num_experts)
            served_BTk = _served(expert_BTk, real_BT, config.num_experts, capacity)
            weight_BTk = jnp.where(served_BTk, weight_BTk, 0.0)
        if taps is not None:
            weight_BTk = tapped_experts(weight_BTk, expert_BTk, real_BT.astype(jnp.float32), taps)

        x_BTD = x_BTD.astype(self.dtype)
        y_BTD = self.experts(x_BTD, expert_BTk, weight_BTk)
        if self.shared_experts is not None:
            y_BTD = y_BTD + self.shared_experts(x_BTD)
        return y_BTD, _statistics(logits_BTE, probs_BTE, expert_BTk, served_BTk, real_BT)


def _served(expert_BTk: jax.Array, real_BT: jax.Array, num_experts: int, capacity: int) -> jax.Array:
    """Whether each choice finds a place: bool [B, T, k]. Only earlier tokens of the same row matter."""
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
