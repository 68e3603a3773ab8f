"""Measures a model's decoding with all keys and values, and within each budget by each policy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from convert.kv_report.rows import ANSWER, Rows
from stellarbyte.figures import perplexity
from stellarbyte.kv_cache.budgets import check_shape, goes_with
from stellarbyte.kv_cache.policy import Policy
from stellarbyte.kv_cache.registry import POLICIES, policy

# The parts of the prompt for which the report says how much each layer kept.
PARTS = 16


@dataclass(frozen=True)
class Setting:
    """A pruned cache: the mean slots of a kv head, how layers share them, and the policy."""

    slots: int
    shape: str
    policy: Policy


@dataclass(frozen=True)
class Reading:
    """What came of reading rows: the prompt at once, what follows token by token.

    loss: the mean loss behind the prompt, in nats. kept: for each layer, the numbers of the tokens that it held after
    the prompt, [N, K, C], -1 for none; empty with all keys. cache_bytes: keys and values of one row, at its end.
    tokens_per_second: of the tokens behind the prompt, all rows together.
    """

    loss: float
    kept: Sequence[np.ndarray]
    cache_bytes: int
    tokens_per_second: float


class Reader(Protocol):
    """A model of either side. `setting` None is the full cache."""

    def read(self, ids_NT: np.ndarray, prompt: int, setting: Setting | None) -> Reading:
        """Reads rows whose first `prompt` tokens are the prompt."""
        ...

    def guess(self, ids_MP: np.ndarray, answers_MA: np.ndarray, setting: Setting | None) -> np.ndarray:
        """The likeliest token in the place of each token of the answers, once it has read all before it: [M, A]."""
        ...


@dataclass(frozen=True)
class Line:
    """What one cache makes of the rows.

    policy, slots: None for the full cache. change: the perplexity's, as a share of that with the full cache. found: of
    the planted lines that the full cache continues to the last token, the share that this one does, too; recalled: the
    same of their single tokens; None if the full cache has none. kept_LP: by layer, the share of kv heads and rows that
    kept each token of the prompt; None for the full cache.
    """

    policy: str | None
    slots: int | None
    loss: float
    change: float
    found: float | None
    recalled: float | None
    cache_bytes: int
    tokens_per_second: float
    kept_LP: np.ndarray | None

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity(self.loss)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; of what was kept, for each layer the mean share of each sixteenth of the prompt."""
        fields = {name: value for name, value in vars(self).items() if name != "kept_LP"}
        kept = None
        if self.kept_LP is not None:
            parts = np.array_split(self.kept_LP, min(PARTS, self.kept_LP.shape[1]), axis=1)
            kept = np.stack([part.mean(axis=1) for part in parts], axis=1).round(4).tolist()
        return {**fields, "perplexity": self.perplexity, "kept": kept}


@dataclass(frozen=True)
class Report:
    """All lines, the full cache's first; how many rows of how many tokens; the planted lines and what it found of them.

    recalled_by_full: single tokens of the planted lines.
    """

    lines: Sequence[Line]
    rows: int
    row_tokens: int
    prompt_tokens: int
    planted: int
    found_by_full: int
    recalled_by_full: int
    shape: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "lines": [line.to_dict() for line in self.lines]}


def measure(
    reader: Reader,
    rows: Rows,
    prompt: int,
    settings: Sequence[Setting],
    update: Callable[[int, int], None] = lambda _done, _whole: None,
) -> Report:
    """Reads the rows and continues the planted lines, with the full cache and with each setting."""
    full_hits_MA = np.zeros((0, ANSWER), bool)
    lines: list[Line] = []
    for number, setting in enumerate((None, *settings)):
        reading = reader.read(rows.ids_NT, prompt, setting)
        hits_MA = full_hits_MA
        if len(rows.planted_MP):
            hits_MA = _guesses(reader, rows, setting) == rows.answers_MA
        if setting is None:
            full_hits_MA = hits_MA
        first_loss = lines[0].loss if lines else reading.loss
        lines.append(
            Line(
                policy=None if setting is None else setting.policy.name,
                slots=None if setting is None else setting.slots,
                loss=reading.loss,
                change=math.expm1(reading.loss - first_loss),
                found=_share(np.all(hits_MA, axis=1), np.all(full_hits_MA, axis=1)),
                recalled=_share(hits_MA, full_hits_MA),
                cache_bytes=reading.cache_bytes,
                tokens_per_second=reading.tokens_per_second,
                kept_LP=_shares(reading.kept, prompt) if reading.kept else None,
            )
        )
        update(number + 1, 1 + len(settings))
    N, T = rows.ids_NT.shape
    shape = settings[0].shape if settings else "uniform"
    found, recalled = int(full_hits_MA.all(axis=1).sum()), int(full_hits_MA.sum())
    return Report(lines, N, T, prompt, len(rows.planted_MP), found, recalled, shape)


def policies_of(shape: str) -> list[str]:
    """The names of all policies that go with a shape."""
    return [name for name in POLICIES if goes_with(shape, policy(name))]


def settings_of(slots: Sequence[int], names: Sequence[str], shape: str) -> list[Setting]:
    """Every policy within every budget, the smallest budget first.

    Raises:
        UserError: there is no such policy, or it does not go with the shape.
    """
    policies = [policy(name) for name in names]
    for each in policies:
        check_shape(shape, each)
    return [Setting(count, shape, each) for count in sorted(set(slots)) for each in policies]


def _guesses(reader: Reader, rows: Rows, setting: Setting | None) -> np.ndarray:
    """The answers to all planted lines, [M, A]: to as many at once as there are passages, for the sake of memory."""
    count = len(rows.ids_NT)
    starts = range(0, len(rows.planted_MP), count)
    parts = [(rows.planted_MP[start : start + count], rows.answers_MA[start : start + count]) for start in starts]
    return np.concatenate([reader.guess(prompts, answers, setting) for prompts, answers in parts])


def _share(hits: np.ndarray, of: np.ndarray) -> float | None:
    """The share of hits among what the full cache has hit."""
    return float(hits[of].mean()) if of.any() else None


def _shares(kept: Sequence[np.ndarray], prompt: int) -> np.ndarray:
    """The share of rows and kv heads that hold each token of the prompt, [L, P]."""
    shares = []
    for index_NKC in kept:
        numbers = index_NKC[index_NKC >= 0]
        shares.append(np.bincount(numbers[numbers < prompt], minlength=prompt) / np.prod(index_NKC.shape[:2]))
    return np.stack(shares)
