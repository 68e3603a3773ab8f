"""The arrays of one layer of a pruned cache: keys, values, the numbers of their tokens, the attention they got."""

from collections.abc import Callable

import torch
from torch import Tensor


class Slots:
    """Keys and values of at most `size` tokens of each row and kv head; during a call also of those that it brings.

    Attributes:
        keys, values: [B, K, C, H].
        index_BKC: the number of each key's token in its row, padding counted: rising from slot 0 on; -1: no key.
        attention_BKC: the softmax weights that each key has got, float32; None if nobody asks.
        counts: the keys of each row, in the head that has most of them.
        is_even: whether all heads of a row have the same number of keys; not so if `drop_from` has reached back behind
            the newest tokens, which all heads hold.
        used: all keys are in the slots before this one.
        in_columns: slot s holds token s of every row, padding as well, like Transformers' own caches: nothing was
            dropped so far.
    """

    def __init__(self, size: int, key: Tensor, value: Tensor, attention: bool) -> None:
        B, K = key.shape[:2]
        self.size = size
        self.keys, self.values = (x.new_zeros(B, K, 0, x.shape[-1]) for x in (key, value))
        self.index_BKC = torch.full((B, K, 0), -1, device=key.device)
        self.attention_BKC = torch.zeros(B, K, 0, device=key.device) if attention else None
        self.counts, self.is_even = [0] * B, True
        self.used = 0
        self.in_columns = True

    @property
    def is_full(self) -> bool:
        """Whether every slot in use holds a key, in each row."""
        return self.is_even and all(count == self.used for count in self.counts)

    @property
    def end(self) -> int:
        """All keys have to be in the slots before this one after a call."""
        return self.size

    def append(self, key: Tensor, value: Tensor, index_BT: Tensor, *, is_padded: bool) -> None:
        """Adds the tokens of these numbers, [B, K, T, H], even if they are more than fit; padding, -1, gets no key.

        is_padded: whether there may be padding.
        """
        B, K, T, H = key.shape
        start, self.used = self.used, self.used + T
        self._reach(self.used)
        if self.in_columns or (not is_padded and all(count == start for count in self.counts)):
            self.keys[:, :, start : self.used] = key
            self.values[:, :, start : self.used] = value
            self.index_BKC[:, :, start : self.used] = index_BT[:, None]
        else:
            place_BT = torch.tensor(self.counts, device=key.device)[:, None] + _real_first(index_BT)
            place_BKT = place_BT[:, None].expand(B, K, T)
            place_BKTH = place_BKT[..., None].expand(B, K, T, H)
            self.keys.scatter_(2, place_BKTH, key)
            self.values.scatter_(2, place_BKTH, value)
            self.index_BKC.scatter_(2, place_BKT, index_BT[:, None].expand(B, K, T))
        new = (index_BT >= 0).sum(dim=1).tolist() if is_padded else [T] * B
        self.counts = [count + more for count, more in zip(self.counts, new, strict=True)]

    def close_gaps(self) -> None:
        """Moves the keys of each row to its first slots, in their order."""
        if not self.is_full:
            index_BKC = self.index_BKC[:, :, : self.used]
            order_BKC = (index_BKC < 0).long().argsort(dim=-1, stable=True)
            self.take(order_BKC.where(index_BKC.gather(2, order_BKC) >= 0, -1))

    def take(self, source_BKC: Tensor) -> None:
        """Keeps the keys in these slots, in this order; -1 stands behind the last of a row."""
        self._count(source_BKC)
        self.used = max(self.counts)
        source_BKC = source_BKC[:, :, : self.used].long()
        keys, values, index_BKC, attention_BKC = self.held(source_BKC)
        self.keys, self.values = self._renewed(self.keys, keys, 0), self._renewed(self.values, values, 0)
        self.index_BKC = self._renewed(self.index_BKC, index_BKC, -1)
        if self.attention_BKC is not None:
            assert attention_BKC is not None
            self.attention_BKC = self._renewed(self.attention_BKC, attention_BKC, 0)
        self.in_columns = False

    def held(self, source_BKC: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Keys, values, numbers and attention of these slots of each head; where this is negative, an empty slot's."""
        B, K, C = self.index_BKC.shape
        heads_BK1 = torch.arange(B * K, device=source_BKC.device).view(B, K, 1)
        # A whole row at a time: ten times as fast on a CPU as `gather`, which looks up each number.
        rows = (heads_BK1 * C + source_BKC.clamp(min=0)).flatten()
        keys, values = (
            x.flatten(0, 2).index_select(0, rows).view(*source_BKC.shape, -1) for x in (self.keys, self.values)
        )
        kept, is_empty = source_BKC.clamp(min=0), source_BKC < 0
        index_BKC = self.index_BKC.gather(2, kept).masked_fill(is_empty, -1)
        if self.attention_BKC is None:
            return keys, values, index_BKC, None
        return keys, values, index_BKC, self.attention_BKC.gather(2, kept).masked_fill(is_empty, 0)

    def drop_from(self, number: int) -> None:
        """Drops the tokens from `number` on."""
        if self.in_columns:
            self.used = min(self.used, number)
        gone_BKC = self.index_BKC >= number
        self.index_BKC.masked_fill_(gone_BKC, -1)
        if self.attention_BKC is not None:
            self.attention_BKC.masked_fill_(gone_BKC, 0)
        self._count(self.index_BKC)
        self.used = self.used if self.in_columns else max(self.counts)

    def each(self, change: Callable[[Tensor], Tensor], rows: list[int]) -> None:
        """Puts `change(array)`, which chooses these rows, in the place of each array."""
        self.keys, self.values, self.index_BKC = change(self.keys), change(self.values), change(self.index_BKC)
        self.attention_BKC = None if self.attention_BKC is None else change(self.attention_BKC)
        self.counts = [self.counts[row] for row in rows]

    def _count(self, numbers_BKC: Tensor) -> None:
        """Takes note of how many keys there are: numbers that are not negative."""
        counts_BK = (numbers_BKC >= 0).sum(dim=-1)
        self.counts = counts_BK.amax(dim=1).tolist()
        self.is_even = bool((counts_BK == counts_BK[:, :1]).all())

    def _reach(self, end: int) -> None:
        """Makes the arrays hold `end` slots: all that there may be, or for this call still more."""
        more = max(self.size, end) - self.keys.shape[2]
        if more > 0:
            self.keys, self.values = (torch.nn.functional.pad(x, (0, 0, 0, more)) for x in (self.keys, self.values))
            self.index_BKC = torch.nn.functional.pad(self.index_BKC, (0, more), value=-1)
            if self.attention_BKC is not None:
                self.attention_BKC = torch.nn.functional.pad(self.attention_BKC, (0, more))

    def _renewed(self, array: Tensor, kept: Tensor, empty: int) -> Tensor:
        """An array that begins with what was kept; the same one if it has the right size."""
        size = max(self.size, self.used)
        if array.shape[2] != size:
            array = array.new_empty(*array.shape[:2], size, *array.shape[3:])
        array[:, :, : self.used] = kept
        array[:, :, self.used :] = empty
        return array


def _real_first(index_BT: Tensor) -> Tensor:
    """The place of each token if padding, -1, goes behind all others: int [B, T]."""
    return (index_BT < 0).long().argsort(dim=1, stable=True).argsort(dim=1)
