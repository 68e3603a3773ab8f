"""An endless order of row numbers, each of them once an epoch: grain's, mended where that is no permutation."""

import grain


class Permutation:
    """Number i of the order is in epoch i // count; the seed and the epoch decide where in it each row comes.

    grain computes a block cipher instead of storing an order, so memory and time do not depend on `count`; it is right
    for more than 2^32 rows too. But of 2^k + 1 rows, for each even k from 16, it gives the last place the row that the
    first has, and no place the last row (in grain 0.2.18 the cipher's blocks are one bit too short then). Here the last
    row gets that place.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._order = grain.MapDataset.source(range(count)).seed(seed).shuffle()
        bits = (count - 1).bit_length() - 1
        self._lacks_last_row = bits >= 16 and bits % 2 == 0 and count - 1 == 1 << bits

    def __getitem__(self, index: int) -> int:
        if self._lacks_last_row and index % self._count == self._count - 1:
            return self._count - 1
        return self._order[index]
