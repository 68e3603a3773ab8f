"""Says which row of which source each sample of a run is; no order is ever held in memory."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stellarbyte_jax.data.mixture import Mixture, Segment
from stellarbyte_jax.data.permutation import Permutation


class SampleId(NamedTuple):
    """A sample of a run: `row` of a source, in the source's own `epoch`, the first of which is 0."""

    source: int
    epoch: int
    row: int


class SampleOrder:
    """The endless order of a run's samples: a pure function of the seed and the sample's number.

    Each row of a source comes once in each of the source's epochs, in an order that the seed and the epoch decide. It
    is computed, not stored: see permutation.py. Memory and time are the same for ten billion rows as for a thousand.

    Args:
        rows: the number of rows of each source.
        seed: the seed of the run.
        segments: the weights by which the sources are mixed; for one source that is not mixed, none.
    """

    def __init__(self, rows: Sequence[int], seed: int, segments: Sequence[Segment] = ()) -> None:
        assert segments or len(rows) == 1, rows
        self.rows = tuple(rows)
        self.mixture = Mixture(segments) if segments else None
        seeds = [_seed_of(seed, source) for source in range(len(rows))] if segments else [seed]
        self._orders = [Permutation(count, own) for count, own in zip(rows, seeds, strict=True)]

    def __getitem__(self, sample: int) -> SampleId:
        source, number = (0, sample) if self.mixture is None else self.mixture.place(sample)
        return SampleId(source, number // self.rows[source], self._orders[source][number])

    def epochs(self, samples: int) -> tuple[float, ...]:
        """How often each source is read by the first `samples` samples."""
        counts = (samples,) if self.mixture is None else self.mixture.counts(samples)
        return tuple(count / rows for count, rows in zip(counts, self.rows, strict=True))


def _seed_of(seed: int, source: int) -> int:
    """A seed for each source, so that equal sources have different orders."""
    return int(np.random.SeedSequence([seed, source]).generate_state(1)[0])
