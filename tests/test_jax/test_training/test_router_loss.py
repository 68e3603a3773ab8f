"""What the routers add to the loss and to the metrics, against sums by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from stellarbyte_jax.model.experts.moe import RouterStats
from stellarbyte_jax.training.router_loss import router_loss, router_metrics, router_sums
from test_jax.tiny import tiny_config

CONFIG = tiny_config(num_experts=2, router_aux_loss_coef=0.5, router_z_loss_coef=0.25)
# Two layers, two rows: one with three real tokens, one with one.
BATCH = {"segment_ids": jnp.array([[1, 1, 2, 0], [1, 0, 0, 0]])}
ROUTER = RouterStats(
    balance_B=jnp.array([[1.0, 5.0], [3.0, 7.0]]),
    z_B=jnp.array([[0.0, 2.0], [2.0, 0.0]]),
    load_BE=jnp.array([[[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [1.0, 0.0]]]),
    dropped_B=jnp.array([[0.0, 0.5], [0.0, 0.5]]),
)


def test_rows_weigh_as_many_tokens_as_they_have() -> None:
    sums = router_sums(ROUTER, BATCH)
    assert float(sums.tokens) == 4
    balance, z = (3 * 2 + 1 * 6) / 4, (3 * 1 + 1 * 1) / 4
    metrics = router_metrics(CONFIG, sums)
    assert float(metrics["balance_loss"]) == pytest.approx(balance)
    assert float(metrics["z_loss"]) == pytest.approx(z)
    assert np.allclose(metrics["expert_load"], [(3 * 0.5 + 1) / 4, 3 * 0.5 / 4])
    assert "dropped_share" not in metrics
    assert float(router_loss(CONFIG, sums, BATCH)) == pytest.approx(0.5 * balance + 0.25 * z)


def test_the_share_dropped_is_told_where_experts_can_be_full() -> None:
    config = tiny_config(num_experts=2, moe_capacity_factor=1.0)
    assert float(router_metrics(config, router_sums(ROUTER, BATCH))["dropped_share"]) == pytest.approx(0.5 / 4)


def test_without_segments_all_rows_weigh_the_same() -> None:
    sums = router_sums(ROUTER, {"input_ids": jnp.zeros((2, 4), jnp.int32)})
    assert float(sums.tokens) == 8 and float(sums.balance) == 4 * 2 + 4 * 6


def test_a_batch_of_padding_has_losses_of_zero() -> None:
    batch = {"segment_ids": jnp.zeros((2, 4), jnp.int32)}
    sums = router_sums(ROUTER, batch)
    assert float(router_loss(CONFIG, sums, batch)) == 0 and float(router_metrics(CONFIG, sums)["balance_loss"]) == 0
