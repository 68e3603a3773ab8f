"""Cuts heads, channels, layers and experts out of a model."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stellarbyte.errors import UserError
from stellarbyte.pruning.cuts import Cuts, branch_factor, kept_groups
from stellarbyte_torch.modeling_stellarbyte import ByteForCausalLM

# The tensors of a layer that are cut, by the ends of their names -> the axis, and of which parts.
_CUT = {
    **dict.fromkeys(("self_attn.q_proj.weight", "self_attn.q_proj.bias"), (0, "queries")),
    **dict.fromkeys(("self_attn.k_proj.weight", "self_attn.k_proj.bias"), (0, "keys")),
    **dict.fromkeys(("self_attn.v_proj.weight", "self_attn.v_proj.bias"), (0, "keys")),
    "self_attn.o_proj.weight": (1, "queries"),
    **dict.fromkeys(("mlp.gate_proj.weight", "mlp.up_proj.weight"), (0, "channels")),
    "mlp.down_proj.weight": (1, "channels"),
    **dict.fromkeys(("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"), (0, "experts")),
}
# Those that end a branch.
_ENDS = (
    *("self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.down_proj.weight"),
    *("mlp.experts.down_proj", "mlp.shared_experts.down_proj.weight"),
)


@torch.no_grad()
def cut(model: ByteForCausalLM, cuts: Cuts) -> ByteForCausalLM:
    """A model without what `cuts` names, in eval mode; the rest computes what it did. `model` stays as it is.

    Raises:
        UserError: the config refuses what is left, such as a layer without heads.
    """
    fields = vars(model.config)
    config = copy.deepcopy(model.config)
    for name, value in cuts.fields_after(fields).items():
        setattr(config, name, value)
    try:
        config.check_architecture()
    except ValueError as error:
        raise UserError(str(error)) from error
    smaller = ByteForCausalLM._from_config(config, attn_implementation=model.config._attn_implementation)
    smaller = smaller.to(device=model.device, dtype=model.dtype)
    given, factor = model.state_dict(), np.float32(branch_factor(fields, cuts))
    layers: Any = model.model.layers
    places = {number: _places(layers[number], fields, cuts, number) for number in cuts.kept_layers(fields)}
    taken = {}
    for key in smaller.state_dict():
        number, _, name = key.removeprefix("model.layers.").partition(".")
        if not key.startswith("model.layers."):
            taken[key] = given[key]
            continue
        old = list(places)[int(number)]
        tensor = given[f"model.layers.{old}.{name}"]
        if name in _CUT:
            axis, part = _CUT[name]
            tensor = tensor.index_select(axis, places[old][part].to(tensor.device))
        taken[key] = tensor * torch.tensor(factor) if factor != 1 and name in _ENDS else tensor
    smaller.load_state_dict(taken)
    return smaller.eval()


def _places(layer: Any, fields: Mapping[str, Any], cuts: Cuts, number: int) -> dict[str, Tensor]:
    """Part -> the places that stay of it in a layer's tensors, from which heads may have gone before."""
    queries, keys = layer.self_attn.heads
    kept = cuts.kept_heads(fields, number)
    H = fields["head_dim"]

    def channels(places: list[int]) -> Tensor:
        return torch.tensor([place * H + channel for place in places for channel in range(H)])

    found = {
        "queries": channels([queries.index(head) for head in kept]),
        "keys": channels([keys.index(group) for group in kept_groups(kept, fields)]),
    }
    if fields["num_experts"]:
        return found | {"experts": torch.tensor(cuts.kept_experts(fields, number))}
    return found | {"channels": torch.tensor(cuts.kept_channels(fields, number))}
