"""The pruned cache, which Transformers' models take in the place of their own."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from stellarbyte.errors import UserError
from stellarbyte.kv_cache.budgets import check_heads, check_shape, layer_slots
from stellarbyte.kv_cache.policy import Policy
from stellarbyte.kv_cache.registry import policy as policy_named
from stellarbyte.kv_cache.settings import KVPruning
from stellarbyte_torch.kv_cache.layer import PrunedLayer
from stellarbyte_torch.kv_cache.pooled import PooledLayer
from stellarbyte_torch.kv_cache.rotation import rotation_of
from stellarbyte_torch.kv_cache.stock import IMPLEMENTATION, MODEL_TYPES, let_attend

# What the config of a model of ours says.
_MODEL_TYPE = "stellarbyte"
# The attention of Transformers that follows a mask of single keys.
_IMPLEMENTATIONS = ("sdpa", "eager")


class PrunedCache(Cache):
    """Keys and values of the tokens that matter most, at most a budget of them; for inference.

    It is given to a model as `past_key_values` (or `cache`), and works in `generate`, with beams, batches of unequal
    prompts, sliding windows and assisted decoding. A model of Transformers' own (stock.MODEL_TYPES) first needs the
    attention "pruned_sdpa": `model.set_attn_implementation("pruned_sdpa")`. Nothing that is kept changes: positions and
    masks come from the true length. As long as the budget holds all tokens, results are those of the full cache, bit
    for bit.

    Args:
        model: the model, for its layers and rotary positions.
        budget: the slots of each kv head of each layer, on average.
        policy: which keys to keep: a name that stellarbyte.kv_cache.registry lists, or a policy.
        shape: how layers share the budget, one of stellarbyte.kv_cache.budgets.SHAPES.

    Attributes:
        sizes: the slots of each kv head in each layer.

    Raises:
        UserError: there is no such policy or shape, the budget is too small, or the model does not let a cache attend.
    """

    def __init__(
        self, model: PreTrainedModel, budget: int, policy: str | Policy = "snap", shape: str = "uniform"
    ) -> None:
        _check_attention(model)
        policy = policy_named(policy) if isinstance(policy, str) else policy
        check_shape(shape, policy)
        if shape == "entropy":
            check_heads(model.config)
        sizes = layer_slots(shape, budget, model.config.num_hidden_layers)
        rotation = rotation_of(model)
        kind = PooledLayer if shape == "entropy" else PrunedLayer
        super().__init__(layers=[kind(size, policy, rotation) for size in sizes])
        self.sizes = sizes

    def attend(
        self,
        attention: Callable[..., tuple[Tensor, Tensor | None]],
        module: Any,
        *tensors: Tensor | None,
        position_ids: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention within the layer's budget, which our attention modules call: see PrunedLayer.attend.

        Raises:
            UserError: the model's attention implementation follows no mask of single keys.
        """
        implementation = module.config._attn_implementation
        if implementation not in _IMPLEMENTATIONS:
            raise UserError(
                f"attn_implementation {implementation} follows no mask of single keys, which a pruned cache needs: "
                f"load the model with {' or '.join(_IMPLEMENTATIONS)}"
            )
        layer: Any = self.layers[module.layer_idx]
        return layer.attend(attention, module, *tensors, position_ids=position_ids, **options)

    @property
    def nbytes(self) -> int:
        """The bytes of all keys and values that are held."""
        slots = [layer.slots for layer in self.layers if layer.slots is not None]
        return sum(array.nbytes for held in slots for array in (held.keys, held.values))


def _check_attention(model: PreTrainedModel) -> None:
    """Refuses a model that would not let a cache attend."""
    kind = model.config.model_type
    if kind == _MODEL_TYPE:
        return
    if kind not in MODEL_TYPES:
        raise UserError(
            f"a pruned cache computes attention itself, which a model of type {kind} is not known to let it do: leave "
            f"the budget out, or take a model of {_MODEL_TYPE}, {', '.join(MODEL_TYPES)}"
        )
    implementation = model.config._attn_implementation
    if implementation != IMPLEMENTATION:
        raise UserError(
            f"attn_implementation {implementation} of a model of type {kind} leaves a pruned cache no attention to "
            f"compute: call model.set_attn_implementation({IMPLEMENTATION!r}) first"
        )


def cache_for(model: Any, pruning: KVPruning | None, tokens: int) -> PrunedCache | None:
    """The cache that the user's settings ask for, for a text of so many tokens; None: nothing has to be dropped.

    Raises:
        UserError: the model does not let a cache attend.
    """
    if pruning is None:
        return None
    let_attend(model)
    cache = PrunedCache(model, pruning.budget.of(tokens), pruning.policy, pruning.shape)
    window = getattr(model.config, "sliding_window", None)
    return cache if pruning.layer_slots(tokens, model.config.num_hidden_layers, window) else None
