"""A way to have something happen in the middle of a run."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from stellarbyte_jax.training.metrics import MetricsLog


@pytest.fixture
def disturb(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Has something happen as soon as step n is computed, before it can be saved."""
    train = MetricsLog.train

    def plan(at: int, event: Callable[[], None]) -> None:
        def train_then(self: MetricsLog, step: int, values: Mapping[str, Any]) -> None:
            train(self, step, values)
            if step == at:
                monkeypatch.setattr(MetricsLog, "train", train)
                event()

        monkeypatch.setattr(MetricsLog, "train", train_then)

    return plan
