"""One layer of a pruned cache whose kv heads share its slots: those that look at more tokens get more of them."""

from typing import Any

import torch
from torch import Tensor

from stellarbyte.kv_cache.budgets import LANES, MOST_LANES, head_lanes
from stellarbyte.kv_cache.selection import keep, room
from stellarbyte_torch.kv_cache.layer import PrunedLayer
from stellarbyte_torch.kv_cache.slots import Slots


class PooledSlots(Slots):
    """Slots that heads share in lanes of size / LANES slots; `size` is what each head has on average.

    Once something was dropped, the slots of all heads lie one after another between calls, [B, 1, K · size, H]. During
    a call each head has MOST_LANES of its own, [B, K, C, H]: its keys end where those of all heads do, and what it has
    no slots for is empty before its first key. `counts` are these ends.

    Attributes:
        lanes_BK: the lanes of each head.
        width: the slots that a head may have at most.
        is_packed: whether the slots lie one after another.
    """

    def __init__(self, size: int, key: Tensor, value: Tensor, attention: bool) -> None:
        super().__init__(size, key, value, attention)
        self.lane = size // LANES
        self.width = MOST_LANES * self.lane
        self.lanes_BK = torch.full(key.shape[:2], LANES, device=key.device)
        self.is_shared = self.is_packed = False

    @property
    def is_full(self) -> bool:
        """Whether every slot in use holds a key, in each row."""
        return not self.is_shared and super().is_full

    @property
    def end(self) -> int:
        """All keys have to be in the slots before this one after a call."""
        return self.width if self.is_shared else self.size

    def close_gaps(self) -> None:
        """Moves the keys of each row to its first slots, in their order; heads that share have no gaps."""
        if not self.is_shared:
            super().close_gaps()

    def share(self, source_BKC: Tensor, lanes_BK: Tensor, empty_B: Tensor) -> None:
        """Keeps the keys in these slots, [B, K, width], in this order; empty_B: each head's empty slots behind them."""
        first_BK1 = (self.width - lanes_BK * self.lane)[..., None]
        place_C = torch.arange(self.width, device=source_BKC.device)
        moved_BKC = source_BKC.long().gather(2, (place_C - first_BK1).clamp(min=0))
        self.lanes_BK, self.is_shared, self.in_columns = lanes_BK, True, False
        self._regroup(moved_BKC.where(place_C >= first_BK1, -1))
        self.counts = (self.width - empty_B).tolist()
        self.used = max(self.counts)

    def pack(self) -> None:
        """Lays the slots of all heads one after another."""
        if not self.is_shared or self.is_packed:
            return
        K = self.lanes_BK.shape[1]
        ends_BK = self.lanes_BK.cumsum(dim=1) * self.lane
        place_S = torch.arange(K * self.size, device=ends_BK.device)
        head_BS = (place_S[:, None] >= ends_BK[:, None]).sum(dim=-1)
        # A head's slots end at `width` there, and at its end here.
        source_BS = head_BS * self.keys.shape[2] + self.width - ends_BK.gather(1, head_BS) + place_S
        self._regroup(source_BS[:, None], flat=True)
        self.is_packed = True

    def unpack(self) -> None:
        """Gives each head slots of its own again."""
        if not self.is_packed:
            return
        B, K = self.lanes_BK.shape
        ends_BK1 = (self.lanes_BK.cumsum(dim=1) * self.lane)[..., None]
        place_C = torch.arange(self.width, device=ends_BK1.device)
        own_BKC = place_C >= self.width - (self.lanes_BK * self.lane)[..., None]
        source_BKC = (ends_BK1 - self.width + place_C).where(own_BKC, -1)
        self._regroup(source_BKC.reshape(B, 1, -1))
        self._divide(K)
        self.is_packed = False

    def drop_from(self, number: int) -> None:
        """Drops the tokens from `number` on."""
        before = list(self.counts)
        gone_B = (self.index_BKC >= number).sum(dim=-1).amin(dim=1).tolist()
        super().drop_from(number)
        if self.is_shared:
            self.counts = [count - gone for count, gone in zip(before, gone_B, strict=True)]
            self.used = max(self.counts)

    def each(self, change: Any, rows: list[int]) -> None:
        """Puts `change(array)`, which chooses these rows, in the place of each array."""
        super().each(change, rows)
        self.lanes_BK = change(self.lanes_BK)

    def _regroup(self, source: Tensor, *, flat: bool = False) -> None:
        """Puts what these slots of each head, or of all together, hold in the place of all slots; -1: empty."""
        if flat:
            self._divide(1)
        self.keys, self.values, self.index_BKC, self.attention_BKC = self.held(source)

    def _divide(self, heads: int) -> None:
        """Divides all slots among so many heads."""
        B, H = self.keys.shape[0], self.keys.shape[-1]
        self.keys, self.values = (x.reshape(B, heads, -1, H) for x in (self.keys, self.values))
        self.index_BKC = self.index_BKC.reshape(B, heads, -1)
        if self.attention_BKC is not None:
            self.attention_BKC = self.attention_BKC.reshape(B, heads, -1)


class PooledLayer(PrunedLayer):
    """The keys and values of at most `size` tokens of each row and kv head, on average over its heads.

    A call of several tokens that overflows a row shares the row's slots out anew, by budgets.head_lanes.
    """

    slots: PooledSlots | None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes the arrays."""
        super().lazy_initialization(key_states, value_states)
        self.slots = PooledSlots(self.size, key_states, value_states, "attention" in self.policy.needs)

    def settle(self, taken_back: int = 0) -> None:
        """Ends the last call: takes note of its queries, those `taken_back` left out, and drops what is too much."""
        super().settle(taken_back)
        if self.slots is not None:
            self.slots.pack()

    @property
    def index_BKC(self) -> Tensor:
        """The numbers of the tokens that each head holds; -1: none."""
        self._begin()
        index_BKC = super().index_BKC.clone()
        self.settle()
        return index_BKC

    def _begin(self) -> None:
        if self.slots is not None:
            self.slots.unpack()

    def _prune(self, coming_B: Tensor | None) -> None:
        assert self.slots is not None
        slots = self.slots
        empty_B = slots.end - torch.tensor(slots.counts, device=self._first_B.device)
        overflows_B = empty_B < (0 if coming_B is None else coming_B)
        evidence, place = self._evidence()
        scores_BKS = self.policy.scores(evidence)
        count_BK, lanes_BK = (evidence.index_BKS >= 0).sum(dim=-1), slots.lanes_BK
        if coming_B is None:
            seen_BKS = evidence.index_BKS >= place["first_B"][:, None, None]
            anew_BK = head_lanes(scores_BKS.where(seen_BKS, 0), count_BK, self.size)
            lanes_BK = anew_BK.to(lanes_BK.dtype).where(overflows_B[:, None], lanes_BK)
        empty_B = empty_B.masked_fill(overflows_B, room(self.size))
        limit_BK = lanes_BK * slots.lane - empty_B[:, None]
        source_BKC = keep(
            scores_BKS, evidence.index_BKS, slots=self.size, limit_BK=limit_BK, width=slots.width, **place
        )
        slots.share(source_BKC, lanes_BK, empty_B)
