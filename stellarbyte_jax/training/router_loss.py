"""Sums the routers' losses and loads over a batch."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from stellarbyte.architecture import ByteConfig
from stellarbyte_jax.model.experts.moe import RouterStats


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RouterSums:
    """float32 sums over real tokens of means over layers; divide by `tokens` only after adding up all micro-batches."""

    balance: jax.Array
    z: jax.Array
    load_E: jax.Array
    dropped: jax.Array
    tokens: jax.Array


def router_sums(router: RouterStats, batch: Mapping[str, jax.Array]) -> RouterSums:
    """The sums of the statistics of all layers, [L, B, …]; a row weighs as much as it has real tokens."""
    tokens_B = _real_tokens(batch)

    def total(row_means: jax.Array) -> jax.Array:
        return jnp.tensordot(tokens_B, row_means.mean(axis=0), axes=1)

    return RouterSums(
        balance=total(router.balance_B),
        z=total(router.z_B),
        load_E=total(router.load_BE),
        dropped=total(router.dropped_B),
        tokens=tokens_B.sum(),
    )


def router_loss(config: ByteConfig, sums: RouterSums, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The routers' part of the training loss of the whole `batch`, for those of its rows that `sums` is over."""
    weighed = config.router_aux_loss_coef * sums.balance + config.router_z_loss_coef * sums.z
    return weighed / jnp.maximum(_real_tokens(batch).sum(), 1)


def router_metrics(config: ByteConfig, sums: RouterSums) -> dict[str, jax.Array]:
    """Means over real tokens and layers: the two losses, each expert's share of all choices, and the share dropped."""
    tokens = jnp.maximum(sums.tokens, 1)
    metrics = {
        "balance_loss": sums.balance / tokens,
        "z_loss": sums.z / tokens,
        "expert_load": sums.load_E / tokens,
    }
    if config.moe_capacity_factor is not None:
        metrics["dropped_share"] = sums.dropped / tokens
    return metrics


def _real_tokens(batch: Mapping[str, jax.Array]) -> jax.Array:
    """The number of tokens in each row that are not padding: float32 [B]."""
    segment_ids_BT = batch.get("segment_ids")
    if segment_ids_BT is None:
        B, T = batch["input_ids"].shape
        return jnp.full((B,), T, jnp.float32)
    return jnp.sum(segment_ids_BT != 0, axis=1, dtype=jnp.float32)
