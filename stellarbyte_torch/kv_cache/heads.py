"""Which query heads of an attention module read which key/value head."""

from typing import Any

import torch
from torch import Tensor


def kv_head_of_queries(module: Any) -> list[int]:
    """The key/value head that each query head reads, of those that the module still has."""
    heads, kv_heads = module.heads
    return [kv_heads.index(head // _group(module)) for head in heads]


def grouped(query: Tensor, module: Any) -> Tensor:
    """Queries [B, N, T, H] as [B, K, G, T, H], in full groups: a query head that was pruned is 0, as in JAX."""
    (B, N, T, H), (heads, kv_heads), G = query.shape, module.heads, _group(module)
    if len(kv_heads) * G == N:
        return query.view(B, -1, G, T, H)
    groups = query.new_zeros(B, len(kv_heads) * G, T, H)
    groups[:, torch.tensor([kv_heads.index(head // G) * G + head % G for head in heads])] = query
    return groups.view(B, -1, G, T, H)


def _group(module: Any) -> int:
    """The query heads of each key/value head before any was pruned."""
    return module.config.num_attention_heads // module.config.num_key_value_heads
