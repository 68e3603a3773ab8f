"""How much a model needs each of its heads, channels, experts and layers, from what was measured on text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Importance = Literal["taylor", "wanda"]


@dataclass(frozen=True)
class Statistics:
    """Sums over the tokens of a text, and sums of weights; one item a layer.

    What a layer lacks (heads that are pruned, channels behind its width) has zeros or no place.

    Attributes:
        tokens: the number of labelled tokens.
        heads: for each query head, of |Σ gradient · output|, summed over the channels of the head.
        head_squares: for each query head, the squares of its channels' outputs [N, H].
        channels, channel_squares: the same for each channel of a dense feed-forward network, [F].
        experts: for each expert, the weights that the router gave it; of a dense model, no entries.
        layer: of |Σ gradient · (output - input)|, summed over the hidden channels.
        layer_angle: of 1 - the cosine of input and output.
        head_weights, channel_weights: the sums of the sizes |w| with which o_proj [N, H] and down_proj [F] go on.
    """

    tokens: int
    heads: Sequence[np.ndarray]
    head_squares: Sequence[np.ndarray]
    channels: Sequence[np.ndarray]
    channel_squares: Sequence[np.ndarray]
    experts: Sequence[np.ndarray]
    layer: np.ndarray
    layer_angle: np.ndarray
    head_weights: Sequence[np.ndarray]
    channel_weights: Sequence[np.ndarray]


@dataclass(frozen=True)
class Scores:
    """The importance of each head [N], channel [F] and expert [E] of each layer, and of each layer [L]."""

    heads: Sequence[np.ndarray]
    channels: Sequence[np.ndarray]
    experts: Sequence[np.ndarray]
    layers: np.ndarray


def scores(found: Statistics, importance: Importance) -> Scores:
    """The scores by a measure, in one unit, so that pieces of different kinds can be weighed against each other.

    taylor: the change of the loss a token, to first order, if the piece gave 0 there: |Σ gradient · activation| (Michel
        et al. 2019, arXiv:1905.10650; Molchanov et al. 2019, arXiv:1906.10771).
    wanda: without gradients. A layer counts 1 - the cosine of what goes in and what comes out (Men et al. 2024,
        arXiv:2403.03853). Its heads share half of that, its channels the other half, in the proportion of weights ·
        norm of activations (Sun et al. 2023, arXiv:2306.11695).

    Experts share half of their layer's score, in the proportion of the weights that the router gave them.
    """
    tokens = max(found.tokens, 1)
    layers = (found.layer if importance == "taylor" else found.layer_angle) / tokens
    experts = _shared_out(found.experts, layers)
    if importance == "taylor":
        mean: Callable[[np.ndarray], np.ndarray] = lambda sums: sums / tokens  # noqa: E731
        return Scores([*map(mean, found.heads)], [*map(mean, found.channels)], experts, layers)
    pairs = zip(found.head_weights, found.head_squares, strict=True)
    heads = [(weights * np.sqrt(squares)).sum(axis=-1) for weights, squares in pairs]
    pairs = zip(found.channel_weights, found.channel_squares, strict=True)
    channels = [weights * np.sqrt(squares) for weights, squares in pairs]
    return Scores(_shared_out(heads, layers), _shared_out(channels, layers), experts, layers)


def worth_of_heads(
    found: Statistics, pruned_heads: Sequence[Sequence[int]] | None
) -> tuple[tuple[float | None, ...], ...]:
    """The score of each head by taylor, layer by layer; None for a head that was pruned before."""
    heads = scores(found, "taylor").heads
    return tuple(
        tuple(None if head in gone else float(score) for head, score in enumerate(row))
        for row, gone in zip(heads, pruned_heads or [()] * len(heads), strict=True)
    )


def _shared_out(parts: Sequence[np.ndarray], layers: np.ndarray) -> list[np.ndarray]:
    """Half of each layer's score, shared out in the proportion of these numbers."""
    return [layer / 2 * part / max(part.sum(), 1e-30) for part, layer in zip(parts, layers, strict=False)]


def added(total: Statistics | None, more: Statistics) -> Statistics:
    """The sums over two texts; the weights are the same in both."""
    if total is None:
        return more

    def both(name: str) -> list[np.ndarray]:
        return [a + b for a, b in zip(getattr(total, name), getattr(more, name), strict=True)]

    sums = {name: both(name) for name in ("heads", "head_squares", "channels", "channel_squares", "experts")}
    angle = total.layer_angle + more.layer_angle
    return replace(more, tokens=total.tokens + more.tokens, layer=total.layer + more.layer, layer_angle=angle, **sums)
