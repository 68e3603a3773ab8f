"""The query heads of an attention module by the key/value head that they read."""

from typing import Any

import torch
from torch import Tensor


def kv_heads_of(module: Any, count: int) -> list[int]:
    """The place of the key/value head that each of `count` query heads reads."""
    if hasattr(module, "kv_slots"):
        return list(module.kv_slots)
    return [head // (count // module.config.num_key_value_heads) for head in range(count)]


def grouped(query: Tensor, module: Any) -> Tensor:
    """Queries [B, N, T, H] as [B, K, G, T, H], in full groups: a query head that was pruned is 0, as in JAX."""
    B, N, T, H = query.shape
    heads, kv_heads = getattr(module, "heads", (range(N), range(module.config.num_key_value_heads)))
    G = module.config.num_attention_heads // module.config.num_key_value_heads  # before any was pruned
    if len(kv_heads) * G == N:
        return query.view(B, -1, G, T, H)
    groups = query.new_zeros(B, len(kv_heads) * G, T, H)
    groups[:, torch.tensor([kv_heads.index(head // G) * G + head % G for head in heads])] = query
    return groups.view(B, -1, G, T, H)
