"""Makes training meet batches whose loss is not finite."""

from collections.abc import Callable, Generator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.training import objective
from stellarbyte_jax.training.loss import LossSums
from test_jax.shards import train_loader

Add = Callable[[Any], Any]


def fingerprint(input_ids_BT: Any, numbers: Any = np) -> Any:
    """A number that tells batches apart, whatever their rows have in common."""
    return numbers.sum(input_ids_BT.astype(np.int32) * numbers.arange(input_ids_BT.size).reshape(input_ids_BT.shape))


def poison(patch: pytest.MonkeyPatch, fingerprints: list[int], added: float = np.nan) -> None:
    """Adds a number to the sum of the losses of the batches with these fingerprints, in training alone."""
    forward = objective.forward

    def poisoned(model, batch, *given, training, **options):  # type: ignore[no-untyped-def]
        sums, router = forward(model, batch, *given, training=training, **options)
        if training:
            is_bad = jnp.isin(fingerprint(batch["input_ids"], jnp), jnp.asarray(fingerprints))
            sums = LossSums(sums.loss + jnp.where(is_bad, added, 0.0), sums.correct, sums.tokens)
        return sums, router

    patch.setattr(objective, "forward", poisoned)


def batches_of(config: RunConfig, *numbers: int) -> list[int]:
    """The fingerprints of a run's batches with these numbers, from 0."""
    loader = train_loader(config.data, config.training.batch_size, config.seed)
    return [int(fingerprint(loader.batch(number)["input_ids"])) for number in numbers]


def without(patch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Makes runs read all batches but those with these numbers."""
    from stellarbyte_jax.data.loader import Take, TrainLoader

    def batches(
        self: TrainLoader, takes: Callable[[int], Take], start: int = 0
    ) -> Generator[dict[str, np.ndarray], None, None]:
        left = [number for number in range(60) if number not in numbers]
        yield from (self.batch(takes(number)) for number in left[start:])

    patch.setattr(TrainLoader, "batches", batches)
