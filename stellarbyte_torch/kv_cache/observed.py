"""What a pruned cache has seen of a layer's queries, as far as its policy needs it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stellarbyte.kv_cache.evidence import WINDOW_QUERIES, Evidence, QueryMoments, Rotation
from stellarbyte_torch.kv_cache.masks import visible
from stellarbyte_torch.kv_cache.rotation import unturned
from stellarbyte_torch.kv_cache.slots import Slots

# Queries that are added up together: their softmax weights are in memory at once.
AT_ONCE = 64


class Observed:
    """The newest queries of each row, and sums over all of them; what the policy does not need is None.

    Queries wait until there are AT_ONCE of them or a policy asks, as adding up is mostly the price of calls, on CPUs
    and on GPUs. Meanwhile the slots may get keys, which these queries do not see, but none may be moved or dropped.

    Args:
        needs: what the policy needs.
        rotation: what turns queries; None without rotary positions.

    Attributes:
        arrays: what was added up, by name.
        waiting: the number of tokens whose queries wait.
    """

    def __init__(self, needs: frozenset[str], rotation: Callable[[Tensor], Rotation] | None) -> None:
        self._needs, self._rotation = needs, rotation
        self.arrays: dict[str, Tensor] = {}
        self._queries: list[Tensor] = []
        self._numbers: list[Tensor] = []
        self.waiting = 0

    def note(self, q_BKGTH: Tensor, index_BT: Tensor) -> None:
        """Takes queries of the tokens with these numbers; -1: padding."""
        self._queries.append(q_BKGTH)
        self._numbers.append(index_BT)
        self.waiting += index_BT.shape[1]

    def add_up(self, scaling: float, offset_B: Tensor, slots: Slots, mask: Tensor | None = None) -> None:
        """Adds up the queries that wait.

        Args:
            scaling: what they are multiplied by before they meet keys.
            offset_B: the position of a token, less its number.
            slots: the keys that they have met.
            mask: what they see of the slots, [B, K or 1, T, S]; None: all keys up to their own.
        """
        if not self.waiting:
            return
        q_BKGTH = (torch.cat(self._queries, dim=3) * scaling).float()
        index_BT = torch.cat(self._numbers, dim=1)
        self._queries, self._numbers, self.waiting = [], [], 0
        if "attention" in self._needs:
            self._add_attention(q_BKGTH, index_BT, mask, slots)
        if "queries" in self._needs:
            self._add_newest(q_BKGTH, index_BT)
        if "query_moments" in self._needs:
            self._add_moments(q_BKGTH, index_BT, index_BT.clamp(min=0) + offset_B[:, None])

    def evidence(self, slots: Slots, **place: Any) -> Evidence:
        """All that a policy may judge by; `place` are Evidence's fields that say where the rows stand."""
        assert not self.waiting
        seen = slice(0, slots.used)
        moments = None
        if "query_moments" in self._needs:
            count = self.arrays["count_B"].clamp(min=1)
            mean = self.arrays["sum_BKGH"] / count[:, None, None, None]
            moments = QueryMoments(mean, self.arrays["second_BKGHH"] / count[:, None, None, None, None])
        return Evidence(
            keys_BKSH=slots.keys[:, :, seen].float(),
            values_BKSH=slots.values[:, :, seen].float(),
            index_BKS=slots.index_BKC[:, :, seen],
            rotation=self._rotation,
            attention_BKS=None if slots.attention_BKC is None else slots.attention_BKC[:, :, seen],
            queries_BKGWH=self.arrays.get("newest_BKGWH"),
            query_index_BW=self.arrays.get("newest_BW"),
            moments=moments,
            **place,
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        """Puts `change(array)`, which chooses rows, in the place of each array."""
        self.arrays = {name: change(array) for name, array in self.arrays.items()}

    def _add_attention(self, q_BKGTH: Tensor, index_BT: Tensor, mask: Tensor | None, slots: Slots) -> None:
        assert slots.attention_BKC is not None
        T = q_BKGTH.shape[3]
        k_BK1HS = slots.keys[:, :, None, : slots.used].float().transpose(-1, -2)
        key_BK11S = slots.index_BKC[:, :, None, None, : slots.used]
        for start in range(0, T, AT_ONCE):
            these = slice(start, start + AT_ONCE)
            number_BT = index_BT[:, these]
            if mask is None:
                sees = (key_BK11S >= 0) & (key_BK11S <= number_BT[:, None, None, :, None])
            else:
                sees = visible(mask[..., these, :])[:, :, None]
            scores = torch.matmul(q_BKGTH[:, :, :, these], k_BK1HS).masked_fill(~sees, -torch.inf)
            weights = scores.softmax(dim=-1).mean(dim=2)
            is_real = (number_BT >= 0)[:, None, :, None]
            slots.attention_BKC[:, :, : slots.used] += weights.masked_fill(~is_real, 0).sum(dim=2)

    def _add_newest(self, q_BKGTH: Tensor, index_BT: Tensor) -> None:
        B, K, G, _, H = q_BKGTH.shape
        if "newest_BKGWH" not in self.arrays:
            self.arrays["newest_BKGWH"] = q_BKGTH.new_zeros(B, K, G, WINDOW_QUERIES, H)
            self.arrays["newest_BW"] = index_BT.new_full((B, WINDOW_QUERIES), -1)
        queries, numbers = self.arrays["newest_BKGWH"], self.arrays["newest_BW"]
        numbers_BS = torch.cat([numbers, index_BT], dim=1)
        best_BW = numbers_BS.argsort(dim=1, descending=True, stable=True)[:, :WINDOW_QUERIES]
        self.arrays["newest_BW"] = numbers_BS.gather(1, best_BW)
        chosen = best_BW[:, None, None, :, None].expand(B, K, G, WINDOW_QUERIES, H)
        self.arrays["newest_BKGWH"] = torch.cat([queries, q_BKGTH], dim=3).gather(3, chosen)

    def _add_moments(self, q_BKGTH: Tensor, index_BT: Tensor, positions_BT: Tensor) -> None:
        if self._rotation is not None:
            turned_by = Rotation(*(x[:, None, None] for x in self._rotation(positions_BT)))
            q_BKGTH = unturned(q_BKGTH, turned_by)
        is_real_BT = index_BT >= 0
        q_BKGTH = q_BKGTH.masked_fill(~is_real_BT[:, None, None, :, None], 0)
        more = {
            "sum_BKGH": q_BKGTH.sum(dim=3),
            "second_BKGHH": q_BKGTH.transpose(-1, -2) @ q_BKGTH,
            "count_B": is_real_BT.sum(dim=1).float(),
        }
        self.arrays |= {name: array + self.arrays.get(name, 0) for name, array in more.items()}
