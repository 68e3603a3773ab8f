"""Cuts heads, channels, layers and experts out of a trained model's parameters."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from stellarbyte.architecture import ByteConfig
from stellarbyte.pruning.cuts import Cuts, branch_factor, kept_groups

Params = dict[str, Any]


def cut(config: ByteConfig, params: Params, cuts: Cuts) -> tuple[ByteConfig, Params]:
    """(config, parameters) of the model without what `cuts` names; the rest computes what it did.

    Layers stay stacked, so that all have the shape of the widest: a narrower layer has its channels in front, and
    behind them zeros. If layers keep different heads, heads that are gone hold zeros and are masked, and
    `config.pruned_heads` lists them; otherwise they are gone from the arrays as well. An export to Hugging Face is
    smaller by all that was cut.

    Raises:
        UserError: the config refuses what is left, such as a layer without heads.
    """
    fields = vars(config)
    after = dataclasses.replace(config, **cuts.fields_after(fields))
    layers = cuts.kept_layers(fields)
    stacked = jax.tree.map(lambda array: np.asarray(array)[layers], params["model"]["layers"])
    stacked["self_attn"] = _attention(stacked["self_attn"], config, after, cuts)
    mlp = stacked["mlp"]
    if config.num_experts:
        kept_LE = np.array([cuts.kept_experts(fields, layer) for layer in layers])
        mlp["experts"] = {
            name: np.take_along_axis(x, kept_LE[:, :, None, None], 1) for name, x in mlp["experts"].items()
        }
        mlp["gate"] = {"kernel": np.take_along_axis(mlp["gate"]["kernel"], kept_LE[:, None], 2)}
    else:
        kept = [cuts.kept_channels(fields, layer) for layer in layers]
        mlp |= {name: {"kernel": _gathered(mlp[name]["kernel"], kept, 2)} for name in ("gate_proj", "up_proj")}
        mlp["down_proj"] = {"kernel": _gathered(mlp["down_proj"]["kernel"], kept, 1)}
    factor = np.float32(branch_factor(fields, cuts))
    if factor != 1:
        stacked["self_attn"]["o_proj"] = _scaled(stacked["self_attn"]["o_proj"], factor)
        ends = [mlp] if not config.num_experts else [mlp["experts"], *filter(None, [mlp.get("shared_experts")])]
        for end in ends:
            end["down_proj"] = _scaled(end["down_proj"], factor)
    return after, params | {"model": params["model"] | {"layers": stacked}}


def _attention(attention: Params, config: ByteConfig, after: ByteConfig, cuts: Cuts) -> Params:
    """The attention of the layers that stay, without the heads that go."""
    fields, H = vars(config), config.head_dim
    assert H is not None
    heads = [cuts.kept_heads(fields, layer) for layer in cuts.kept_layers(fields)]
    groups = [kept_groups(kept, fields) for kept in heads]
    take: Callable[[np.ndarray, list[list[int]], int], np.ndarray] = _gathered if after.pruned_heads is None else _only
    queries, keys = ([_channels(numbers, H) for numbers in each] for each in (heads, groups))
    cut = dict(attention)
    for name, kept in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        cut[name] = {leaf: take(x, kept, x.ndim - 1) for leaf, x in attention[name].items()}
    cut["o_proj"] = attention["o_proj"] | {"kernel": take(attention["o_proj"]["kernel"], queries, 1)}
    return cut


def _channels(heads: Sequence[int], head_dim: int) -> list[int]:
    return [head * head_dim + channel for head in heads for channel in range(head_dim)]


def _gathered(stack: np.ndarray, kept: list[list[int]], axis: int) -> np.ndarray:
    """The numbered places of each layer along an axis, in front; the rest up to the most that a layer keeps is zero."""
    most = max(map(len, kept))
    shape = list(stack.shape)
    shape[axis] = most
    result = np.zeros(shape, stack.dtype)
    for layer, numbers in enumerate(kept):
        np.moveaxis(result[layer], axis - 1, 0)[: len(numbers)] = np.moveaxis(stack[layer], axis - 1, 0)[numbers]
    return result


def _only(stack: np.ndarray, kept: list[list[int]], axis: int) -> np.ndarray:
    """The same array with zeros in all other places, whatever they held."""
    result = np.zeros_like(stack)
    for layer, numbers in enumerate(kept):
        np.moveaxis(result[layer], axis - 1, 0)[numbers] = np.moveaxis(stack[layer], axis - 1, 0)[numbers]
    return result


def _scaled(end: Any, factor: np.float32) -> Any:
    return jax.tree.map(lambda array: array * factor, end)
