"""Takes attention heads out of a trained model."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError

Params = dict[str, Any]


def prune_heads(config: ByteConfig, params: Params, heads: Mapping[int, Collection[int]]) -> tuple[ByteConfig, Params]:
    """(config, parameters) of the model without the query heads in `heads`, which maps a layer to heads to remove.

    `config.pruned_heads` lists them. Stacked layers keep their shapes: pruned heads hold zeros and are masked, in
    training as well. A key/value head is pruned with the last query head that reads it. An export to Hugging Face is
    smaller by all of these.

    Raises:
        UserError: there is no such layer or head, or a layer would have no head left.
    """
    gone = [set(heads_of_layer) for heads_of_layer in config.pruned_heads or ((),) * config.num_hidden_layers]
    for layer, more in heads.items():
        if not 0 <= layer < config.num_hidden_layers:
            raise UserError(f"layer {layer} does not exist: the model has layers 0 to {config.num_hidden_layers - 1}")
        gone[layer] |= set(more)
    config = dataclasses.replace(config, pruned_heads=tuple(tuple(sorted(layer)) for layer in gone))

    H, N, K = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    assert H is not None and K is not None
    query_LN = np.array([[head not in layer for head in range(N)] for layer in gone])
    key_value_LK = query_LN.reshape(len(gone), K, -1).any(axis=-1)
    kept = {
        "q_proj": np.repeat(query_LN, H, axis=1),
        "k_proj": np.repeat(key_value_LK, H, axis=1),
        "v_proj": np.repeat(key_value_LK, H, axis=1),
    }
    attention = dict(params["model"]["layers"]["self_attn"])
    for name, kept_LX in kept.items():
        # where and not a product makes the zeros, because pruned channels may hold anything, infinities included.
        zeroed = {"kernel": jnp.where(kept_LX[:, None], attention[name]["kernel"], 0)}
        if "bias" in attention[name]:
            zeroed["bias"] = jnp.where(kept_LX, attention[name]["bias"], 0)
        attention[name] = zeroed
    o_kernel = jnp.where(kept["q_proj"][:, :, None], attention["o_proj"]["kernel"], 0)
    attention["o_proj"] = attention["o_proj"] | {"kernel": o_kernel}
    layers = params["model"]["layers"] | {"self_attn": attention}
    return config, params | {"model": params["model"] | {"layers": layers}}


def least_important(
    scores_LN: np.ndarray, count: int, config: ByteConfig, whole_groups: bool = False
) -> dict[int, list[int]]:
    """Layer -> its heads among the `count` heads with the lowest scores; every layer keeps at least one head.

    Heads that are pruned already are passed over. With `whole_groups` all query heads of a key/value head go together,
    by the sum of their scores, so that its keys and values are pruned as well; `count` must be a multiple of the group.

    Raises:
        UserError: there are fewer heads that can be taken, or `count` is no multiple of the group.
    """
    L, N = scores_LN.shape
    group = N // (config.num_key_value_heads or N) if whole_groups else 1
    if count < 1 or count % group:
        raise UserError(f"{count} heads cannot be taken: give a multiple of {group} of at least {group}")
    gone = [set(layer) for layer in config.pruned_heads or ((),) * L]
    left = [N - len(layer) for layer in gone]
    candidates = []
    for layer in range(L):
        for first in range(0, N, group):
            members = [head for head in range(first, first + group) if head not in gone[layer]]
            if len(members) == group:
                candidates.append((float(scores_LN[layer, members].sum()), layer, members))
    chosen: dict[int, list[int]] = {}
    taken = 0
    for _, layer, members in sorted(candidates):
        if taken < count and left[layer] > group:
            chosen.setdefault(layer, []).extend(members)
            left[layer] -= group
            taken += group
    if taken < count:
        raise UserError(f"{count} heads cannot be taken, only {taken}: every layer must keep at least one")
    return {layer: sorted(heads) for layer, heads in sorted(chosen.items())}
