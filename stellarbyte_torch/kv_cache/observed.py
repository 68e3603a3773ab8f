"""What a pruned cache has seen of a layer's queries, as far as its policy needs it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stellarbyte.kv_cache.evidence import WINDOW_QUERIES, Evidence, QueryMoments, Rotation
from stellarbyte_torch.kv_cache.masks import visible
from stellarbyte_torch.kv_cache.rotation import unturned
from stellarbyte_torch.kv_cache.slots import Slots

# Queries whose softmax weights are in memory at once.
_QUERIES = 64


class Observed:
    """The newest queries of each row, and sums over all of them; what the policy does not need is None.

    Args:
        needs: what the policy needs.
        rotation: what turns queries; None without rotary positions.
    """

    def __init__(self, needs: frozenset[str], rotation: Callable[[Tensor], Rotation] | None) -> None:
        self._needs, self._rotation = needs, rotation
        self._arrays: dict[str, Tensor] = {}
        self._oldest = WINDOW_QUERIES - 1  # its place among the newest queries, the same in each row

    def add(
        self,
        q_BKGTH: Tensor,
        index_BT: Tensor,
        positions_BT: Tensor,
        mask: Tensor | None,
        slots: Slots,
        *,
        is_padded: bool,
    ) -> None:
        """Takes note of queries, scaled, of the tokens with these numbers (-1: padding) and positions.

        mask: what they see of the slots, [B, K or 1, T, S]; None: all keys up to their own. is_padded: whether there
        may be padding.
        """
        q_BKGTH = q_BKGTH.float()
        if "attention" in self._needs:
            self._add_attention(q_BKGTH, index_BT, mask, slots)
        if "queries" in self._needs:
            self._add_newest(q_BKGTH, index_BT, is_padded)
        if "query_moments" in self._needs:
            self._add_moments(q_BKGTH, index_BT, positions_BT)

    def evidence(self, slots: Slots, **place: Any) -> Evidence:
        """All that a policy may judge by; `place` are Evidence's fields that say where the rows stand."""
        seen = slice(0, slots.used)
        moments = None
        if "query_moments" in self._needs:
            count = self._arrays["count_B"].clamp(min=1)
            mean = self._arrays["sum_BKGH"] / count[:, None, None, None]
            moments = QueryMoments(mean, self._arrays["second_BKGHH"] / count[:, None, None, None, None])
        return Evidence(
            keys_BKSH=slots.keys[:, :, seen].float(),
            values_BKSH=slots.values[:, :, seen].float(),
            index_BKS=slots.index_BKC[:, :, seen],
            rotation=self._rotation,
            attention_BKS=None if slots.attention_BKC is None else slots.attention_BKC[:, :, seen],
            queries_BKGWH=self._arrays.get("newest_BKGWH"),
            query_index_BW=self._arrays.get("newest_BW"),
            moments=moments,
            **place,
        )

    def each(self, change: Callable[[Tensor], Tensor]) -> None:
        """Puts `change(array)`, which chooses rows, in the place of each array."""
        self._arrays = {name: change(array) for name, array in self._arrays.items()}

    def _add_attention(self, q_BKGTH: Tensor, index_BT: Tensor, mask: Tensor | None, slots: Slots) -> None:
        assert slots.attention_BKC is not None
        T = q_BKGTH.shape[3]
        k_BK1HS = slots.keys[:, :, None, : slots.used].float().transpose(-1, -2)
        key_BK11S = slots.index_BKC[:, :, None, None, : slots.used]
        for start in range(0, T, _QUERIES):
            these = slice(start, start + _QUERIES)
            number_BT = index_BT[:, these]
            if mask is None:
                sees = (key_BK11S >= 0) & (key_BK11S <= number_BT[:, None, None, :, None])
            else:
                sees = visible(mask[..., these, :])[:, :, None]
            scores = torch.matmul(q_BKGTH[:, :, :, these], k_BK1HS).masked_fill(~sees, -torch.inf)
            weights = scores.softmax(dim=-1).mean(dim=2)
            is_real = (number_BT >= 0)[:, None, :, None]
            slots.attention_BKC[:, :, : slots.used] += weights.masked_fill(~is_real, 0).sum(dim=2)

    def _add_newest(self, q_BKGTH: Tensor, index_BT: Tensor, is_padded: bool) -> None:
        B, K, G, T, H = q_BKGTH.shape
        if "newest_BKGWH" not in self._arrays:
            self._arrays["newest_BKGWH"] = q_BKGTH.new_zeros(B, K, G, WINDOW_QUERIES, H)
            self._arrays["newest_BW"] = index_BT.new_full((B, WINDOW_QUERIES), -1)
        queries, numbers = self._arrays["newest_BKGWH"], self._arrays["newest_BW"]
        if T == 1 and not is_padded:
            queries[:, :, :, self._oldest], numbers[:, self._oldest] = q_BKGTH[:, :, :, 0], index_BT[:, 0]
            self._oldest = (self._oldest - 1) % WINDOW_QUERIES
            return
        numbers_BS = torch.cat([numbers, index_BT], dim=1)
        best_BW = numbers_BS.argsort(dim=1, descending=True, stable=True)[:, :WINDOW_QUERIES]
        self._arrays["newest_BW"] = numbers_BS.gather(1, best_BW)
        chosen = best_BW[:, None, None, :, None].expand(B, K, G, WINDOW_QUERIES, H)
        self._arrays["newest_BKGWH"] = torch.cat([queries, q_BKGTH], dim=3).gather(3, chosen)
        self._oldest = WINDOW_QUERIES - 1

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
        self._arrays |= {name: array + self._arrays.get(name, 0) for name, array in more.items()}
