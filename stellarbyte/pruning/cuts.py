"""What is cut out of a model, and the fields of its config without it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["heads", "channels", "layers", "experts"]
KINDS: tuple[Kind, ...] = ("heads", "channels", "layers", "experts")


@dataclass(frozen=True)
class Cuts:
    """What goes, numbered as in the model before.

    Attributes:
        layers: whole layers, ascending.
        heads: layer -> query heads that go, ascending, in layers that stay.
        channels: layer -> channels of its feed-forward network that go, ascending, in layers that stay.
        experts: layer -> experts that go, ascending; equally many in each layer that stays.
    """

    layers: tuple[int, ...] = ()
    heads: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    channels: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    experts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def kept_layers(self, fields: Mapping[str, Any]) -> list[int]:
        """The layers that stay."""
        return [layer for layer in range(fields["num_hidden_layers"]) if layer not in self.layers]

    def kept_heads(self, fields: Mapping[str, Any], layer: int) -> list[int]:
        """The query heads that a layer keeps, by their numbers in its config."""
        gone = {*gone_heads(fields)[layer], *self.heads.get(layer, ())}
        return [head for head in range(fields["num_attention_heads"]) if head not in gone]

    def kept_channels(self, fields: Mapping[str, Any], layer: int) -> list[int]:
        """The channels of a layer's feed-forward network that stay."""
        gone = set(self.channels.get(layer, ()))
        return [channel for channel in range(widths(fields)[layer]) if channel not in gone]

    def kept_experts(self, fields: Mapping[str, Any], layer: int) -> list[int]:
        """The experts that a layer keeps."""
        gone = set(self.experts.get(layer, ()))
        return [expert for expert in range(fields["num_experts"]) if expert not in gone]

    def fields_after(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a model's config that are others after the cut, from its `fields` before.

        Heads of which equally many are left in equally large groups of all layers are no longer said to be pruned: the
        model just has fewer.
        """
        layers = self.kept_layers(fields)
        after: dict[str, Any] = {"num_hidden_layers": len(layers), "head_dim": fields["head_dim"]}
        if not fields["num_experts"]:
            left = tuple(len(self.kept_channels(fields, layer)) for layer in layers)
            after["intermediate_size"] = left[0] if len(set(left)) == 1 else left
        else:
            after["num_experts"] = len(self.kept_experts(fields, layers[0]))
        heads = [self.kept_heads(fields, layer) for layer in layers]
        shape = self.regular_heads(fields)
        if shape is not None:
            return after | {"num_attention_heads": shape[0], "num_key_value_heads": shape[1], "pruned_heads": None}
        every = range(fields["num_attention_heads"])
        return after | {"pruned_heads": tuple(tuple(head for head in every if head not in kept) for kept in heads)}

    def regular_heads(self, fields: Mapping[str, Any]) -> tuple[int, int] | None:
        """(query heads, key/value heads) that every layer keeps, in groups of one size; None if layers differ."""
        group = fields["num_attention_heads"] // fields["num_key_value_heads"]
        found = set()
        for layer in self.kept_layers(fields):
            sizes: dict[int, int] = {}
            for head in self.kept_heads(fields, layer):
                sizes[head // group] = sizes.get(head // group, 0) + 1
            if len(set(sizes.values())) != 1:
                return None
            found.add((sum(sizes.values()), len(sizes)))
        return found.pop() if len(found) == 1 else None


def kept_groups(heads: Sequence[int], fields: Mapping[str, Any]) -> list[int]:
    """The key/value heads that query heads read, ascending."""
    group = fields["num_attention_heads"] // fields["num_key_value_heads"]
    return sorted({head // group for head in heads})


def gone_heads(fields: Mapping[str, Any]) -> Sequence[Sequence[int]]:
    """The query heads that each layer has lost before."""
    return fields["pruned_heads"] or ((),) * fields["num_hidden_layers"]


def widths(fields: Mapping[str, Any]) -> Sequence[int]:
    """The width of each layer's feed-forward network."""
    size = fields["intermediate_size"]
    return (size,) * fields["num_hidden_layers"] if isinstance(size, int) else size


def branch_factor(fields: Mapping[str, Any], cuts: Cuts) -> float:
    """The factor of what ends a branch (o_proj, down_proj) that keeps the other layers' results when layers go.

    DeepNorm's norm(alpha · x + f) depends on the ratio of alpha, which follows from the depth, and f alone.
    """
    if fields["residual"] != "deepnorm":
        return 1.0
    after, before = len(cuts.kept_layers(fields)), fields["num_hidden_layers"]
    return float((after / before) ** 0.25)
