"""The attention by which Transformers' own models let a pruned cache attend.

Such a model hands new keys to its cache and then attends to what that gives back. A pruned cache has to see the queries
as well, so it gives back the new keys with a note of where they belong, and this function passes the rest on.
"""

from functools import partial
from typing import Any

from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

# What `attn_implementation` calls it.
IMPLEMENTATION = "pruned_sdpa"
# Types of models that are known to ask for attention so, their queries and keys turned by a module `rotary_emb`.
MODEL_TYPES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")

_LAYER = "_pruned_layer"


def let_attend(model: Any) -> None:
    """Sets a model of Transformers' own that attends by sdpa to an attention that lets a pruned cache attend.

    With any other cache it does the same as sdpa.
    """
    if model.config.model_type in MODEL_TYPES and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(IMPLEMENTATION)


def noted(key: Tensor, layer: Any) -> Tensor:
    """The same keys, for `pruned_sdpa_attention` to find the layer of a pruned cache by."""
    key = key.view_as(key)
    setattr(key, _LAYER, layer)
    return key


def pruned_sdpa_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    position_ids: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Transformers' sdpa attention, within a budget where keys come from a pruned cache."""
    attention, layer = ALL_ATTENTION_FUNCTIONS["sdpa"], getattr(key, _LAYER, None)
    if layer is not None:
        attention = partial(layer.attend, attention)
    return attention(module, query, key, value, attention_mask, position_ids=position_ids, **options)


AttentionInterface.register(IMPLEMENTATION, pruned_sdpa_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
