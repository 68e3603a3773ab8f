"""A spike is told as NumPy tells it, and never before the window is full."""

import numpy as np
import pytest

from stellarbyte_jax.config import TrainingConfig
from stellarbyte_jax.training.loss_spike import SpikeRule

RULE = SpikeRule(zscore=2.0, window=5)


def test_a_loss_is_a_spike_by_numpys_mean_and_deviation() -> None:
    generator = np.random.default_rng(0)
    told = []
    for _ in range(50):
        losses = generator.normal(3, 0.1, 5).astype(np.float32)
        loss = np.float32(losses.mean() + generator.uniform(0, 4) * losses.std())
        told.append(bool(RULE.is_spike(loss, losses)))
        assert told[-1] == (loss > losses.mean(dtype=np.float64) + 2 * losses.std(dtype=np.float64))
    assert 10 < sum(told) < 40


def test_the_window_holds_the_last_losses_and_says_nothing_before() -> None:
    window = RULE.first()
    for loss in range(4):
        window = RULE.after(np.float32(loss), window)
        assert not RULE.is_spike(np.float32(1e9), window)
    window = RULE.after(np.float32(4), window)
    assert RULE.is_spike(np.float32(1e9), window) and not RULE.is_spike(np.float32(np.nan), window)
    for loss in range(5, 8):
        window = RULE.after(np.float32(loss), window)
    assert window.tolist() == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("kept", [[], [1.5], [1.0, 2.0, 3.0, 4.0, 5.0], [*map(float, range(9))]])
def test_a_window_is_made_again_of_what_is_saved(kept: list[float]) -> None:
    window = RULE.first(kept)
    assert window.dtype == np.float32 and len(window) == 5
    assert window[np.isfinite(window)].tolist() == kept[-5:]
    assert np.isnan(window[: 5 - len(kept[-5:])]).all()


def test_a_run_has_a_rule_if_it_has_a_zscore() -> None:
    assert SpikeRule.of(TrainingConfig(1, 1)) is None
    assert SpikeRule.of(TrainingConfig(1, 1, loss_spike_zscore=6.0)) == SpikeRule(6.0, 128)
