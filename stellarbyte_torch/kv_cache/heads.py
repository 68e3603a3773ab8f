"""Which query heads of an attention module read which key/value head."""

from typing import Any

import torch
from torch import Tensor


def kv_head_of_queries(module: Any, query_heads: int) -> list[int]:
    """The key/value head that each query head reads, of those that the module still has."""
    if getattr(module, "is_regular", True):
        return [head // module.num_key_value_groups for head in range(query_heads)]
    return module.kv_slots


def grouped(query: Tensor, module: Any) -> Tensor:
    """Queries [B, N, T, H] as [B, K, G, T, H], in full groups: a query head that was pruned is 0, as in JAX."""
    B, N, T, H = query.shape
    whole = getattr(module, "heads", None)  # of our modules, which can be pruned
    if whole is None:
        return query.view(B, -1, module.num_key_value_groups, T, H)
    heads, kv_heads = whole
    G = module.config.num_attention_heads // module.config.num_key_value_heads
    if len(kv_heads) * G == N:
        return query.view(B, -1, G, T, H)
    groups = query.new_zeros(B, len(kv_heads) * G, T, H)
    groups[:, torch.tensor([kv_heads.index(head // G) * G + head % G for head in heads])] = query
    return groups.view(B, -1, G, T, H)
