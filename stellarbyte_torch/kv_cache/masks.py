"""From Transformers' masks, with a column for each token of a row, to masks of the keys that a pruned cache holds."""

import torch
from torch import Tensor

from stellarbyte.errors import UserError


def visible(mask: Tensor) -> Tensor:
    """Where a mask lets queries see keys, bool; it is bool itself, or is added to the scores."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def real_tokens(mask: Tensor | None, number: int, count: int) -> Tensor | None:
    """Whether each of `count` new tokens, from `number` on, is no padding: bool [B, T]; None if none of them is.

    mask: [B, 1, T, S]; a token that does not see itself is padding.

    Raises:
        UserError: the mask has not a column for each token of the row.
    """
    if mask is None:
        return None
    if mask.shape[1:] != (1, count, number + count):
        raise UserError(
            f"attention_mask is {list(mask.shape)}, and this call reads {count} tokens after {number}: with a pruned "
            f"cache it has a column for each token and is the same for all heads, [B, 1, {count}, {number + count}]"
        )
    real_BT = visible(mask)[:, 0].diagonal(offset=number, dim1=-2, dim2=-1)
    return None if bool(real_BT.all()) else real_BT


def mask_of_keys(mask: Tensor | None, index_BKS: Tensor, number: int, count: int) -> Tensor:
    """The mask [B, K, T, S] of keys whose tokens have these numbers; -1: there is no key.

    mask: the columns of all tokens; None: each of the `count` queries, from `number` on, sees all keys up to its own.
    """
    index_BK1S = index_BKS[:, :, None]
    if mask is None:
        numbers_T1 = torch.arange(number, number + count, device=index_BKS.device)[:, None]
        return (index_BK1S >= 0) & (index_BK1S <= numbers_T1)
    B, K, S = index_BKS.shape
    columns = index_BK1S.clamp(min=0).expand(B, K, count, S)
    chosen = mask.expand(B, K, *mask.shape[-2:]).gather(-1, columns)
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return chosen.masked_fill(index_BK1S < 0, hidden)
