"""The positions of tokens in rows that may hold several documents, which in training do not see each other either."""

import torch
from torch import Tensor


def positions_of(rows_NT: Tensor, bos: object) -> Tensor:
    """The position of each token within its document, int64 [N, T].

    Transformers hides from each other what lies on two sides of a position that does not follow the one before it.

    bos: the token that begins each document; if it is no number, the model has none, and a row counts as one document.
    """
    index_T = torch.arange(rows_NT.shape[1], device=rows_NT.device)
    begins_NT = rows_NT == bos if isinstance(bos, int) else torch.zeros_like(rows_NT, dtype=torch.bool)
    return index_T - torch.where(begins_NT, index_T, 0).cummax(dim=1).values
