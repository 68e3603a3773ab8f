"""A pruned cache whose heads share a layer's slots: the laws of the others, and a fair share."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from stellarbyte.errors import UserError
from stellarbyte.kv_cache.budgets import FEWEST_LANES, LANES
from stellarbyte.kv_cache.evidence import Evidence
from stellarbyte.kv_cache.snap import Snap
from stellarbyte_torch.kv_cache import PrunedCache
from stellarbyte_torch.modeling_stellarbyte import CACHE
from test_torch.test_kv_cache.test_cache import kept, left_padded, read
from test_torch.tiny import tiny_model, tokens

every_policy = pytest.mark.parametrize("policy", ["snap", "heavy", "expected"])


@dataclass(frozen=True)
class Uneven(Snap):
    """The last head looks at one token, the others everywhere."""

    name: ClassVar[str] = "uneven"

    def scores(self, evidence: Evidence) -> Tensor:
        scores = torch.ones(evidence.index_BKS.shape)
        scores[:, -1] = (evidence.index_BKS[:, -1] == 5).float()
        return scores


def numbers(cache: PrunedCache, row: int, padding: int = 0) -> list[list[int]]:
    """The numbers of the tokens that each head of each layer holds of a row."""
    return [[int(n) - padding for n in head if n >= 0] for held in kept(cache) for head in held[row]]


@every_policy
def test_a_budget_for_all_tokens_changes_no_bit(policy: str) -> None:
    model, (ids, mask) = tiny_model(), left_padded(24, 4)
    expected = read(model, DynamicCache(), ids, 18, mask)
    actual = read(model, PrunedCache(model, 24, policy, "entropy"), ids, 18, mask)
    assert torch.equal(actual[mask.bool()], expected[mask.bool()])


@every_policy
def test_rows_and_positions_do_not_matter(policy: str) -> None:
    model, (ids, mask) = tiny_model(xpos_scale_base=512.0), left_padded(50, 13)
    both, first, second, shifted = (PrunedCache(model, 24, policy, "entropy") for _ in range(4))
    logits = read(model, both, ids, 44, mask)[:, -1:]
    alone = [read(model, first, ids[:1, 13:], 31)[:, -1:], read(model, second, ids[1:], 44)[:, -1:]]
    torch.testing.assert_close(logits, torch.cat(alone), rtol=0, atol=1e-5 * logits.abs().max().item())
    assert numbers(both, 0, 13) == numbers(first, 0)
    assert numbers(both, 1) == numbers(second, 0)
    read(model, shifted, ids[1:], 44, start=10_000)
    assert numbers(shifted, 0) == numbers(second, 0)


def test_heads_share_what_there_is_and_memory_does_not_grow() -> None:
    model = tiny_model(num_hidden_layers=1, max_position_embeddings=1024)
    cache, sizes = PrunedCache(model, 48, Uneven(), "entropy"), set()
    for number, count in enumerate((90, *[1] * 12, 20, 1)):
        with torch.no_grad():
            model(tokens(1, count, seed=number), past_key_values=cache)
        sizes.add(cache.nbytes)
        wide, narrow = numbers(cache, 0)
        length = cache.get_seq_length()
        assert len(narrow) <= 6 * FEWEST_LANES
        assert len(wide) - len(narrow) == 6 * (2 * LANES - 2 * FEWEST_LANES)
        for head in (wide, narrow):
            assert head == sorted(head)
            assert {*range(4), *range(length - 6, length)} <= set(head)
    assert sizes == {2 * 2 * 48 * 8 * 4}


@every_policy
@torch.no_grad()
def test_taking_a_calls_last_tokens_back_leaves_no_trace(policy: str) -> None:
    model, ids = tiny_model(), tokens(1, 40)
    taken_back, never_read = PrunedCache(model, 18, policy, "entropy"), PrunedCache(model, 18, policy, "entropy")
    for cache, count in ((taken_back, 9), (never_read, 5)):
        model(ids[:, :30], past_key_values=cache)
        cache.activate_past_recording()
        model(ids[:, 30 : 30 + count], past_key_values=cache)
        cache.crop(5 - count)
    assert all(map(torch.equal, kept(taken_back), kept(never_read)))
    again = [model(ids[:, 35:36], past_key_values=cache).logits for cache in (taken_back, never_read)]
    torch.testing.assert_close(*again)


def test_it_generates_with_beams_and_an_assistant() -> None:
    model, ids = tiny_model(), tokens(1, 30)
    common: dict[str, Any] = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 2, "do_sample": False}
    for ways in ({"num_beams": 3}, {"prompt_lookup_num_tokens": 3}):
        cache = PrunedCache(model, 16, "snap", "entropy")
        assert model.generate(ids, **{CACHE: cache}, **common, **ways).shape == (1, 38)
        assert cache.nbytes == cache.layers[0].slots.keys.shape[0] * 2 * 2 * 2 * 16 * 8 * 4


def test_a_policy_that_asks_no_attention_is_refused() -> None:
    with pytest.raises(UserError, match="entropy goes by how widely heads look, which policy window does not ask"):
        PrunedCache(tiny_model(), 16, "window", "entropy")
    with pytest.raises(UserError, match=r"kv head 1 of layer 0 has lost all that read it"):
        PrunedCache(tiny_model(pruned_heads=((2, 3), ())), 16, "snap", "entropy")
