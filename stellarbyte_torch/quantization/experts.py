"""The linear layers of a decoder layer: its experts, which are stacked along E, count as one layer each.

A layer of Transformers 5 holds its experts as two tensors, gate_up_proj [E, 2F, D] and down_proj [E, D, F].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Is given the name of a linear layer and the rows [M, I] that it is about to read.
Hear = Callable[[str, Tensor], None]

ROUTER = "mlp.gate"


@dataclass(frozen=True)
class Linear:
    """A linear layer. Its tensors are views: changing them in place changes the decoder layer.

    name: within the decoder layer, such as "mlp.experts.3.up_proj". weight: [O, I]. bias: [O] or None.
    """

    name: str
    weight: Tensor
    bias: Tensor | None = None


def are_experts(module: nn.Module) -> bool:
    """Whether a module holds the matrices of experts, stacked."""
    stacked = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    return all(isinstance(weight, nn.Parameter) and weight.ndim == 3 for weight in stacked)


def is_router(name: str) -> bool:
    """Whether a linear layer chooses experts; it is never quantised, because a wrong choice costs a whole expert."""
    return name == ROUTER


def linears_of(layer: nn.Module) -> dict[str, Linear]:
    """The linear layers of a decoder layer by their names; of experts each, and the router among them."""
    found: dict[str, Linear] = {}
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            bias = None if module.bias is None else module.bias.data
            found[name] = Linear(name, module.weight.data, bias)
        elif are_experts(module):
            experts: Any = module
            for number in range(len(experts.down_proj)):
                gate, up = experts.gate_up_proj.data[number].chunk(2)
                parts = {"gate_proj": gate, "up_proj": up, "down_proj": experts.down_proj.data[number]}
                for part, weight in parts.items():
                    found[f"{name}.{number}.{part}"] = Linear(f"{name}.{number}.{part}", weight)
        elif name == ROUTER:
            found[name] = Linear(name, module.get_parameter("weight").data)
    return found


def computed(
    experts: Any, name: str, x_MD: Tensor, experts_Mk: Tensor, weights_Mk: Tensor, hear: Hear, round_rows: Any = None
) -> Tensor:
    """What stacked experts put out, [M, D] -> [M, D], one expert after another; `hear` gets each one's inputs.

    name: that of the module within the decoder layer. round_rows: a function for the inputs of each linear layer.
    """
    rounded = round_rows or (lambda x: x)
    chosen = [torch.where(experts_Mk == number) for number in range(len(experts.down_proj))]
    # All are heard before the first computes, since a caller may have heard enough then.
    for number, (rows, _) in enumerate(chosen):
        hear(f"{name}.{number}.gate_proj", x_MD[rows])
    output = torch.zeros_like(x_MD)
    for number, (rows, choices) in enumerate(chosen):
        gate, up = nn.functional.linear(rounded(x_MD[rows]), experts.gate_up_proj[number]).chunk(2, dim=-1)
        inner_MF = experts.act_fn(gate) * up
        hear(f"{name}.{number}.down_proj", inner_MF)
        y_MD = nn.functional.linear(rounded(inner_MF), experts.down_proj[number])
        output.index_add_(0, rows, (y_MD * weights_Mk[rows, choices, None]).to(output.dtype))
    return output
