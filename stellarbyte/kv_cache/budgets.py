"""How a budget of slots is shared out over layers."""

from itertools import pairwise

from stellarbyte.errors import UserError, shown
from stellarbyte.kv_cache.selection import FEWEST_SLOTS

SHAPES = ("uniform", "pyramid")


def layer_slots(shape: str, slots: int, layers: int) -> tuple[int, ...]:
    """The slots of each kv head in each layer; their mean is `slots`.

    uniform: the same everywhere. pyramid: the first layer has half as many again, the last half as many, and those
    between lie on a line (PyramidKV: Cai et al. 2024, arXiv:2406.02069); never fewer than FEWEST_SLOTS.

    Raises:
        UserError: there is no such shape, or there are too few slots.
    """
    if shape not in SHAPES:
        raise UserError(f"--kv-shape {shown(shape)} is unknown: use {', '.join(SHAPES)}")
    if slots < FEWEST_SLOTS:
        raise UserError(f"a budget of {slots} slots is too small for what is always kept: give at least {FEWEST_SLOTS}")
    if shape == "uniform" or layers == 1:
        return (slots,) * layers
    last = max(FEWEST_SLOTS, slots // 2)
    first = 2 * slots - last
    # What is rounded off in one layer is made up for in the next.
    ends = [0.0]
    for layer in range(layers):
        ends.append(ends[-1] + first + (last - first) * layer / (layers - 1))
    whole = [round(end) for end in ends]
    return tuple(end - start for start, end in pairwise(whole))
