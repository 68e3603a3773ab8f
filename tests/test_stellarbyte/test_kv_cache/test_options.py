"""Budgets as users write them, how layers share them, and a policy of one's own."""

import argparse
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellarbyte.errors import UserError
from stellarbyte.kv_cache import registry
from stellarbyte.kv_cache.budgets import FEWEST_LANES, LANES, MOST_LANES, head_lanes, layer_slots
from stellarbyte.kv_cache.options import add_pruning_options, pruning_of
from stellarbyte.kv_cache.selection import FEWEST_SLOTS, room
from stellarbyte.kv_cache.settings import KVBudget, KVPruning
from stellarbyte.kv_cache.window import Window


def pruning(*words: str) -> KVPruning | None:
    parser = argparse.ArgumentParser()
    add_pruning_options(parser)
    return pruning_of(parser.parse_args(words))


def test_what_is_said() -> None:
    assert pruning() is None
    assert pruning("--kv-budget", "512") == KVPruning(KVBudget(slots=512), registry.policy("snap"))
    shared = pruning("--kv-budget", "12.5%", "--kv-policy", "window", "--kv-shape", "pyramid")
    assert shared == KVPruning(KVBudget(share=0.125), Window(), "pyramid")
    assert shared.budget.of(1000) == 125
    assert shared.budget.of(10) == FEWEST_SLOTS


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--kv-budget", "many"], "--kv-budget 'many' is no number of tokens and no share: write 512 or 25%"),
        (["--kv-budget", "0.5"], "--kv-budget '0.5' is no number of tokens and no share"),
        (["--kv-budget", "nan%"], "--kv-budget nan% must be above 0% and at most 100%"),
        (["--kv-budget", "0"], "--kv-budget 0 is too small: .* give at least 16"),
        (["--kv-budget", "200%"], "--kv-budget 200% must be above 0% and at most 100%"),
        (["--kv-budget", "0%"], "--kv-budget 0% must be above 0% and at most 100%"),
        (["--kv-budget", "15"], "--kv-budget 15 is too small: .* give at least 16"),
        (["--kv-budget=-4"], "--kv-budget -4 is too small"),
        (["--kv-policy", "snap"], "--kv-policy snap needs --kv-budget"),
        (["--kv-budget", "99", "--kv-policy", "lru"], "--kv-policy 'lru' is unknown: use window, heavy, snap, exp"),
        (["--kv-budget", "99", "--kv-shape", "cone"], "--kv-shape cone is unknown: use uniform, pyramid, entropy"),
    ],
)
def test_what_is_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        pruning(*words)


def test_a_text_that_fits_drops_nothing() -> None:
    budget = KVPruning(KVBudget(slots=64), Window())
    assert budget.layer_slots(64, 2) is None
    assert budget.layer_slots(65, 2) == (64, 64)
    assert budget.layer_slots(1000, 1, window=65) == (64,)
    assert budget.layer_slots(1000, 1, window=64) is None
    assert KVPruning(KVBudget(share=1.0), Window()).layer_slots(65, 2) is None


@given(st.integers(FEWEST_SLOTS, 5000), st.integers(1, 80))
def test_a_pyramid_has_the_same_slots_in_all(slots: int, layers: int) -> None:
    sizes = layer_slots("pyramid", slots, layers)
    assert len(sizes) == layers
    assert sum(sizes) == slots * layers
    assert min(sizes) >= FEWEST_SLOTS
    assert all(later <= earlier + 1 for earlier, later in pairwise(sizes))
    assert layers == 1 or slots < 2 * FEWEST_SLOTS or sizes[0] > 2.5 * sizes[-1]


@given(st.integers(1, 9), st.integers(0, 2**32), st.integers(FEWEST_SLOTS, 200), st.integers(1, 300))
def test_lanes_go_to_heads_that_look_widely(heads: int, seed: int, slots: int, more: int) -> None:
    slots = slots // LANES * LANES
    rng = np.random.default_rng(seed)
    scores = rng.random((1, heads, 300)).astype(np.float32) ** rng.choice([0, 1, 9, 200], (1, heads, 1))
    counts = np.full((1, heads), slots + more)
    lanes = head_lanes(scores, counts, slots)[0]
    assert lanes.sum() == LANES * heads
    assert min(lanes) >= FEWEST_LANES
    assert max(lanes) * (slots // LANES) <= min(2 * slots, slots + more + room(slots))
    shares = scores[0] / scores[0].sum(axis=-1, keepdims=True)
    widths = np.exp(-(shares * np.log(np.maximum(shares, 1e-30))).sum(axis=-1))
    order = np.argsort(widths)
    assert (np.diff(lanes[order]) >= -1).all()


def test_one_head_that_looks_everywhere_gets_what_others_can_spare() -> None:
    scores = np.zeros((1, 3, 400), np.float32)
    scores[:, 0], scores[:, 1:, 7] = 1, 1
    assert head_lanes(scores, np.full((1, 3), 400), 80).tolist() == [[MOST_LANES, FEWEST_LANES, FEWEST_LANES]]
    assert head_lanes(scores, np.full((1, 3), 100), 80).tolist() == [[10, 7, 7]], "100 keys fill 10 lanes"
    assert head_lanes(np.full_like(scores, np.nan), np.full((1, 3), 400), 80).tolist() == [[LANES] * 3]


def test_entropy_needs_scores_that_are_attention() -> None:
    assert layer_slots("entropy", 100, 2) == (96, 96)
    with pytest.raises(UserError, match="entropy goes by how widely heads look, which policy norm does not ask"):
        pruning("--kv-budget", "99", "--kv-policy", "norm", "--kv-shape", "entropy")


def test_a_policy_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "POLICIES", dict(registry.POLICIES))

    @dataclass(frozen=True)
    class Oldest(Window):
        name: ClassVar[str] = "oldest"

    @dataclass(frozen=True)
    class Greedy(Window):
        needs: ClassVar[frozenset[str]] = frozenset({"the future"})

    registry.register_policy("oldest", Oldest)
    assert registry.policy("oldest") == Oldest()
    with pytest.raises(UserError, match="there is a policy 'oldest' already"):
        registry.register_policy("oldest", Oldest)
    with pytest.raises(UserError, match="policy greedy needs 'the future', which no cache collects: attention, que"):
        registry.register_policy("greedy", Greedy)
