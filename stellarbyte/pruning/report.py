"""What pruning did to a model: its figures before and after, and what went of each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from stellarbyte.pruning.choice import Choice
from stellarbyte.pruning.cuts import Cuts
from stellarbyte.pruning.measure import flops, parameters


@dataclass(frozen=True)
class Figures:
    """A model's figures.

    Attributes:
        parameters: the numbers that an export holds.
        flops: forward FLOPs of a token, on average over a text of the length of the context.
        nbytes: bytes of the weights in memory.
        loss: the mean loss of a token of held-out text, in nats. perplexity: its exponential.
        prefill_seconds: the time for a prompt. decode_seconds: the time for a token that follows it.
    """

    parameters: int
    flops: float
    nbytes: int
    loss: float
    perplexity: float
    prefill_seconds: float
    decode_seconds: float

    @classmethod
    def of(cls, fields: Mapping[str, Any], **measured: Any) -> "Figures":
        """The figures of a model with these config fields; `measured` are those that only the model itself tells."""
        work = flops(fields, fields["max_position_embeddings"]).left(fields)
        return cls(round(parameters(fields).left(fields)), work, **measured)


@dataclass(frozen=True)
class Layer:
    """What a layer of the model before has left: query heads, channels, experts; all None if the layer went."""

    heads: int | None
    channels: int | None
    experts: int | None


@dataclass(frozen=True)
class Report:
    """A model pruned to a share: its figures before and after, and its layers.

    Attributes:
        keep: the share that was wanted. share: the share that is left, of what `by` says.
        remark: why the two differ, if they do; or where the model is that was trained on.
        layers: what each layer has left. whole: what it had before.
        is_recovered: whether `after` is of the model that was trained on.
    """

    keep: float
    share: float
    by: str
    remark: str | None
    before: Figures
    after: Figures
    layers: tuple[Layer, ...]
    whole: tuple[Layer, ...]
    is_recovered: bool = False

    def recovered(self, after: Figures, where: str) -> "Report":
        """The same report of the model after it was trained on; `where` says where that is."""
        remark = f"the figures after are those of the model that was trained on; {where}"
        return replace(self, after=after, remark=remark, is_recovered=True)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return asdict(self)

    def text(self) -> str:
        """The report for people to read."""
        rows = [("", "before", "after", "")]
        for name, before, after in _pairs(self.before, self.after):
            change = f"{after / before - 1:+.1%}" if before else ""
            rows.append((name, _number(before), _number(after), change))
        lines = [f"kept: {self.share:.1%} of the {self.by}"]
        lines += [f"  {name:<24}{before:>12}{after:>12}{change:>9}" for name, before, after, change in rows]
        pairs = zip(self.layers, self.whole, strict=True)
        lines += [f"  layer {number:<3} {_layer(*pair)}" for number, pair in enumerate(pairs)]
        return "\n".join(lines if self.remark is None else [*lines, self.remark])


def layers_left(fields: Mapping[str, Any], cuts: Cuts) -> tuple[Layer, ...]:
    """What each layer of the model before has left."""
    kept, found = cuts.kept_layers(fields), []
    for layer in range(fields["num_hidden_layers"]):
        if layer not in kept:
            found.append(Layer(None, None, None))
        elif fields["num_experts"]:
            experts = len(cuts.kept_experts(fields, layer))
            found.append(Layer(len(cuts.kept_heads(fields, layer)), None, experts))
        else:
            heads, channels = cuts.kept_heads(fields, layer), cuts.kept_channels(fields, layer)
            found.append(Layer(len(heads), len(channels), None))
    return tuple(found)


def report(fields: Mapping[str, Any], choice: Choice, keep: float, by: str, before: Figures, after: Figures) -> Report:
    """The report of a choice that was carried out."""
    layers, whole = (layers_left(fields, cuts) for cuts in (choice.cuts, Cuts()))
    return Report(keep, choice.share, by, choice.remark, before, after, layers, whole)


def _pairs(before: Figures, after: Figures) -> Sequence[tuple[str, float, float]]:
    return (
        ("parameters", before.parameters, after.parameters),
        ("FLOPs of a token", before.flops, after.flops),
        ("bytes in memory", before.nbytes, after.nbytes),
        ("perplexity", before.perplexity, after.perplexity),
        ("prefill, ms", 1e3 * before.prefill_seconds, 1e3 * after.prefill_seconds),
        ("decoding a token, ms", 1e3 * before.decode_seconds, 1e3 * after.decode_seconds),
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.4g}"


def _layer(layer: Layer, whole: Layer) -> str:
    if layer.heads is None:
        return "is gone"
    inner = f"{layer.channels} of {whole.channels} channels"
    if layer.experts is not None:
        inner = f"{layer.experts} of {whole.experts} experts"
    return f"keeps {layer.heads} of {whole.heads} heads, {inner}"
