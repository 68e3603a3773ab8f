"""Decides which families a model here can be exported as, and says for the others which fields are in the way."""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

from convert.families.family import Family, Rule
from convert.families.registry import FAMILIES
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError, shown

# Fields that act in training alone, which a family's config.json cannot say.
_IN_TRAINING = ("hidden_dropout", "residual_dropout", "drop_path_rate", "moe_capacity_factor")


@dataclass(frozen=True)
class Misfit:
    """A field of the model with which it is none of a family, its value, and a sentence with the reason."""

    field: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Fit:
    """Whether a model can be exported as one of a family.

    Attributes:
        family: the family.
        misfits: what is in the way; empty if it can.
        remarks: sentences on what the export does to the model, without changing what it computes.
    """

    family: Family
    misfits: tuple[Misfit, ...]
    remarks: tuple[str, ...]


def fits(config: ByteConfig) -> list[Fit]:
    """The fit of a model with each family, in the order of the registry."""
    return [fit(family, config) for family in FAMILIES.values()]


def fit(family: Family, config: ByteConfig) -> Fit:
    """The fit of a model with a family."""
    misfits = [_misfit(family, rule, config) for rule in family.rules if getattr(config, rule.field) != rule.value]
    if family.not_exported is not None and family.not_exported.field not in [found.field for found in misfits]:
        misfits.append(_misfit(family, family.not_exported, config))
    if family.experts is not None and config.num_experts == 0:
        misfits.append(_misfit(family, Rule("num_experts", None, "has experts"), config))
    if not isinstance(config.intermediate_size, int):
        does = "has one width for all layers"
        misfits.append(_misfit(family, Rule("intermediate_size", None, does), config))
    complaint = _irregular(config)
    if complaint is not None:
        misfits.append(Misfit("pruned_heads", config.pruned_heads, f"pruned_heads: {complaint}"))
    elif family.heads_divide_width and config.hidden_size % (heads := exported(config).num_attention_heads):
        does = f"wants a multiple of its {heads} heads"
        misfits.append(_misfit(family, Rule("hidden_size", None, does), config))
    return Fit(family, tuple(misfits), _remarks(config))


def check_fits(family: Family, config: ByteConfig, where: str) -> None:
    """Raises UserError, with every field that is in the way, unless the model can be exported as one of the family."""
    misfits = fit(family, config).misfits
    if misfits:
        others = [other.family.model_type for other in fits(config) if not other.misfits]
        instead = f"--as {others[0]}" if others else "no --as, which exports any model as our own class"
        reasons = "; ".join(misfit.reason for misfit in misfits)
        raise UserError(f"{where} is no {family.architecture}: {reasons}. Use {instead}")


def exported(config: ByteConfig) -> ByteConfig:
    """The config of the model as a family holds it: LayerScale folded in, and without the heads that are pruned."""
    config = dataclasses.replace(config, layer_scale_init=None)
    if config.pruned_heads is None:
        return config
    (heads, kv_heads) = _heads_left(config)[0]
    return dataclasses.replace(config, num_attention_heads=heads, num_key_value_heads=kv_heads, pruned_heads=None)


def _misfit(family: Family, rule: Rule, config: ByteConfig) -> Misfit:
    value = getattr(config, rule.field)
    return Misfit(rule.field, value, f"{rule.field} is {shown(value)}, but {family.architecture} {rule.does}")


def _irregular(config: ByteConfig) -> str | None:
    """Why the heads that are left do not make the same shape in all layers, or None."""
    if config.pruned_heads is None:
        return None
    left = _heads_left(config)
    for layer, (heads, kv_heads) in enumerate(left):
        if kv_heads == 0:
            return f"layer {layer} keeps more heads in one group than in another, which no stock class can"
        if (heads, kv_heads) != left[0]:
            return (
                f"layer {layer} keeps {heads} heads in {kv_heads} groups and layer 0 {left[0][0]} in {left[0][1]}, but "
                "stock classes have the same number in all layers"
            )
    return None


def _heads_left(config: ByteConfig) -> list[tuple[int, int]]:
    """(query heads, their groups) that each layer keeps; 0 groups if they are not of one size."""
    assert config.pruned_heads is not None and config.num_key_value_heads is not None
    group = config.num_attention_heads // config.num_key_value_heads
    found = []
    for gone in config.pruned_heads:
        sizes = Counter(head // group for head in range(config.num_attention_heads) if head not in gone)
        found.append((sum(sizes.values()), len(sizes) if len(set(sizes.values())) == 1 else 0))
    return found


def _remarks(config: ByteConfig) -> tuple[str, ...]:
    remarks = []
    if config.layer_scale_init is not None:
        remarks.append("LayerScale is folded into o_proj and down_proj")
    if config.pruned_heads is not None and _irregular(config) is None:
        remarks.append(f"heads that are pruned are gone, {exported(config).num_attention_heads} are left in each layer")
    remarks += [
        f"{name} {getattr(config, name)} is left out, as it acts in training alone"
        for name in _IN_TRAINING
        if getattr(config, name)
    ]
    return tuple(remarks)
