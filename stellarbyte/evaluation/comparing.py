"""Says whether one model is better than another on the same documents, by a paired bootstrap."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.evaluation.measuring import BLOCK_BYTES, Losses

# With fewer documents the blocks of their texts are drawn instead.
ENOUGH_DOCUMENTS = 30
# With fewer units an interval says little about other text of the kind.
_FEWEST = 20
_RESAMPLES, _MOST_DRAWS = 10_000, 400_000_000
# A model in JAX and its export in PyTorch differ by less, in bits a byte: by rounding alone.
_ROUNDING = 1e-5
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Comparison:
    """What is between two models, in bits a byte; a positive difference says that the other one is worse.

    low, high: the bounds of the 95 % interval of the difference. p: how often resampled texts of equal models would
    show a difference as large, on either side. units: what was drawn; count: how many of them there are.
    """

    ours: float
    theirs: float
    difference: float
    low: float
    high: float
    p: float
    units: str
    count: int
    resamples: int

    @property
    def is_real(self) -> bool:
        """Whether the interval leaves 0 out, and the difference is more than rounding."""
        return (self.low > 0 or self.high < 0) and abs(self.difference) > _ROUNDING

    def sentence(self, ours: str, theirs: str) -> str:
        """The verdict in words."""
        p = f"p < {2 / self.resamples:.2g}" if self.p <= 2 / self.resamples else f"p = {self.p:.2g}"
        facts = f"95 % interval {self.low:+.4f} to {self.high:+.4f}, {p}, {self.count} {self.units}"
        change = f"{theirs} takes {abs(self.difference):.4f} bits a byte {'more' if self.difference > 0 else 'less'}"
        if self.is_real:
            better = ours if self.difference > 0 else theirs
            return f"{change} than {ours} ({facts}): the difference is real, and {better} is better on text like this"
        return f"{change} than {ours} ({facts}): this text shows no difference between them"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "is_real": self.is_real}


def compare(ours: Sequence[Losses], theirs: Sequence[Losses], seed: int = 0) -> Comparison:
    """The difference between two models that have measured the same documents, maybe by different tokenizers.

    Documents are drawn with replacement, each with the losses of both models (Efron & Tibshirani 1993, chapters 13 and
    16; for language models Koehn 2004, W04-3250); of fewer than ENOUGH_DOCUMENTS documents the blocks are drawn. The
    interval is that of percentiles.

    Raises:
        UserError: there is too little text to tell.
    """
    by_document = len(ours) >= ENOUGH_DOCUMENTS
    if by_document:
        nats = [np.array([each.nats.sum() for each in side]) for side in (ours, theirs)]
        bytes_N = np.array([each.bytes.sum() for each in ours], np.float64)
    else:
        nats = [np.concatenate([each.nats for each in side]) for side in (ours, theirs)]
        bytes_N = np.concatenate([each.bytes for each in ours]).astype(np.float64)
    count = len(bytes_N)
    if count < _FEWEST:
        raise UserError(
            f"--compare needs at least {_FEWEST} blocks of {BLOCK_BYTES} bytes or {ENOUGH_DOCUMENTS} documents to tell "
            f"a difference from chance, and --data has {count} blocks: name more text"
        )
    ours_N, theirs_N = (side / np.log(2) for side in nats)
    drawn = _resampled(theirs_N - ours_N, bytes_N, np.random.default_rng(seed))
    low, high = np.quantile(drawn, [0.025, 0.975])
    p = 2 * min((drawn <= 0).mean(), (drawn >= 0).mean())
    a, b = ours_N.sum() / bytes_N.sum(), theirs_N.sum() / bytes_N.sum()
    return Comparison(
        ours=float(a),
        theirs=float(b),
        difference=float(b - a),
        low=float(low),
        high=float(high),
        p=float(min(1.0, max(p, 1 / len(drawn)))),
        units="documents" if by_document else f"blocks of about {BLOCK_BYTES} bytes",
        count=count,
        resamples=len(drawn),
    )


def _resampled(difference_N: np.ndarray, bytes_N: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The difference a byte in each of many resamples."""
    N = len(bytes_N)
    resamples = max(1000, min(_RESAMPLES, _MOST_DRAWS // N))
    found: list[np.ndarray] = []
    at_once = max(1, _DRAWS_AT_ONCE // N)
    for start in range(0, resamples, at_once):
        index_RN = draw.integers(N, size=(min(at_once, resamples - start), N))
        found.append(difference_N[index_RN].sum(axis=1) / bytes_N[index_RN].sum(axis=1))
    return np.concatenate(found)
