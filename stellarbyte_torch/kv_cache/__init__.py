"""A Transformers cache within a budget: of each row it keeps the keys and values that matter."""

from stellarbyte_torch.kv_cache.cache import PrunedCache

__all__ = ["PrunedCache"]
