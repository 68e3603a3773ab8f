"""What a model's rotary embedding turns queries and keys by, as policies ask for it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stellarbyte.kv_cache.evidence import Rotation


@dataclass(frozen=True)
class RotaryTables:
    """The function from positions [...] to the rotation there, by a model's rotary embedding."""

    rotary: Any

    @torch.no_grad()
    def __call__(self, positions: Tensor) -> Rotation:
        """See the class."""
        float_ = torch.zeros((), device=positions.device)
        tables = self.rotary(float_, positions.reshape(1, -1))  # two, with XPos four, of [1, S, H]
        halves = [x[0, :, : x.shape[-1] // 2].unflatten(0, positions.shape).float() for x in tables]
        cos, sin = halves[:2]
        one = torch.ones_like(cos)
        if len(halves) == 2:
            return Rotation(cos, sin, one, one)
        # XPos multiplies a query by a factor and a key by its inverse, so the product of both is cos² + sin².
        query_factor = (cos.square() + sin.square()).sqrt() / self.rotary.attention_scaling
        return Rotation(cos / query_factor, sin / query_factor, query_factor, 1 / query_factor)


def rotation_of(model: nn.Module) -> RotaryTables | None:
    """The rotation of a model at each position; None if it has no rotary positions."""
    rotary: Any = next((part.rotary_emb for part in model.modules() if hasattr(part, "rotary_emb")), None)
    return None if rotary is None else RotaryTables(rotary)


def unturned(queries: Tensor, rotation: Rotation) -> Tensor:
    """Queries [..., T, H] before they were turned, by the rotation [..., T, H / 2] at their positions."""
    first, second = queries.chunk(2, dim=-1)
    cos, sin = rotation.cos, rotation.sin
    divisor = rotation.query_factor * (cos.square() + sin.square())
    return torch.cat([(first * cos + second * sin) / divisor, (second * cos - first * sin) / divisor], dim=-1)
