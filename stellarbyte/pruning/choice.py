"""Chooses what goes until a share of a model is left: greedily, the least important for its size first."""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.pruning.cuts import KINDS, Cuts, Kind, gone_heads, widths
from stellarbyte.pruning.measure import Measure, flops, parameters
from stellarbyte.pruning.scores import Scores

# The share kept may differ from the one that is wanted by so much.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Wanted:
    """What is to be left of a model.

    Attributes:
        keep: the share of parameters or FLOPs that is kept, above 0 and below 1.
        what: the kinds of pieces that may go.
        by: what the share counts.
        even: whether all layers keep equally many heads and channels, as stock architectures want.
        multiple: the number that the widths that are left are multiples of.
    """

    keep: float
    what: tuple[Kind, ...] = ("heads", "channels")
    by: Literal["parameters", "flops"] = "parameters"
    even: bool = False
    multiple: int = 8

    def measure(self, fields: Mapping[str, Any]) -> Measure:
        """The sizes that the share counts; FLOPs are those of a token in a text as long as the context."""
        return parameters(fields) if self.by == "parameters" else flops(fields, fields["max_position_embeddings"])


@dataclass(frozen=True)
class Choice:
    """What goes; the share that is left; and a sentence if that is not the share that was wanted."""

    cuts: Cuts
    share: float
    remark: str | None


def choose(fields: Mapping[str, Any], scores: Scores, wanted: Wanted) -> Choice:
    """The pieces of a model with these config fields that go, so that `wanted.keep` of it is left.

    Pieces go one after the other, that of the lowest score for its size first. Each layer keeps at least one head and
    `multiple` channels, the model one layer, and a token its num_experts_per_tok experts.

    Raises:
        UserError: a kind is none of the model's, layers differ where `even` wants them alike, or too little can go.
    """
    check_wanted(fields, wanted)
    left = _Left(fields, scores, wanted)
    whole = wanted.measure(fields).left(fields)
    need, slack, too_large = whole * (1 - wanted.keep), TOLERANCE * whole, None
    heap = [piece for kind in wanted.what for piece in left.pieces(kind)]
    heapq.heapify(heap)
    while need > 0 and heap:
        piece = heapq.heappop(heap)
        if not left.is_up_to_date(piece):
            continue
        if piece.size > need + slack:  # what is needed only shrinks
            too_large = piece if too_large is None or piece.size < too_large.size else too_large
            continue
        left.take(piece)
        need -= piece.size
        for kind in wanted.what:
            for changed in left.pieces_after(piece, kind):
                heapq.heappush(heap, changed)
    if need > slack and too_large is not None and too_large.size < 2 * need and left.is_up_to_date(too_large):
        left.take(too_large)  # which comes closer than to leave it
        need -= too_large.size
    share = wanted.keep + need / whole
    if abs(need) <= slack:
        return Choice(left.cuts(), share, None)
    if too_large is None:
        raise UserError(
            f"--keep {wanted.keep:.1%} is too little: of {', '.join(wanted.what)} only so much can go that "
            f"{share:.1%} of the {wanted.by} are left; keep more, or let other kinds go with --what"
        )
    if left.cuts() == Cuts():
        raise UserError(
            f"--keep {wanted.keep:.1%} leaves the model whole: the smallest of the {too_large.kind} that could go has "
            f"{too_large.size / whole:.1%}; keep less, or let smaller kinds go with --what"
        )
    remark = (
        f"{share:.1%} of the {wanted.by} are left instead of {wanted.keep:.1%}: the {too_large.kind} that could go are "
        f"of {too_large.size / whole:.1%} each"
    )
    return Choice(left.cuts(), share, remark)


def check_wanted(fields: Mapping[str, Any], wanted: Wanted) -> None:
    """Raises UserError if a wish fits no model, or not the model with these fields."""
    if not 0 < wanted.keep < 1:
        raise UserError(f"--keep {wanted.keep:.4g} must be above 0 and below 1 (100%): give the share that is left")
    if wanted.multiple < 1:
        raise UserError(f"--multiple {wanted.multiple} must be at least 1")
    if not wanted.what or len(set(wanted.what)) < len(wanted.what):
        raise UserError(f"--what {','.join(wanted.what)} must name one or more of {', '.join(KINDS)}, each once")
    if "experts" in wanted.what and not fields["num_experts"]:
        raise UserError("--what experts needs a model with experts, and this one has none: take channels")
    if "channels" in wanted.what and fields["num_experts"]:
        raise UserError(
            "--what channels is for dense feed-forward networks, and this model has experts: take experts, which go as "
            "a whole"
        )
    if wanted.even and not isinstance(fields["intermediate_size"], int):
        raise UserError("--even needs layers of one width to begin with, and intermediate_size is a list: leave it out")
    if wanted.even and fields["pruned_heads"] and Cuts().regular_heads(fields) is None:
        raise UserError("--even needs equally many heads in all layers to begin with, and pruned_heads is uneven")


@dataclass(frozen=True, order=True)
class _Piece:
    """What may go next of a kind, in one layer or (layer None) in all. ratio: its score for its size.

    members: layer -> the numbers of heads, channels or experts; for a layer its own number alone.
    """

    ratio: float
    kind: Kind
    layer: int
    version: int
    size: float
    score: float
    members: tuple[tuple[int, tuple[int, ...]], ...]


_ALL = -1


class _Left:
    """What is left of a model while pieces go."""

    def __init__(self, fields: Mapping[str, Any], scores: Scores, wanted: Wanted) -> None:
        self.fields, self.scores, self.wanted = fields, scores, wanted
        self.measure = wanted.measure(fields)
        layers, every = range(fields["num_hidden_layers"]), range(fields["num_attention_heads"])
        self.layers = list(layers)
        self.heads = [[head for head in every if head not in set(gone)] for gone in gone_heads(fields)]
        self.group = fields["num_attention_heads"] // fields["num_key_value_heads"]
        # By score, the least important last, so that it can be popped.
        dense = not fields["num_experts"]
        each = zip(scores.channels, widths(fields), strict=True) if dense else ()
        self.channels = [np.argsort(-score[:width], kind="stable").tolist() for score, width in each] or [
            [] for _ in layers
        ]
        experts = range(0 if dense else fields["num_experts"])
        self.experts = [sorted(experts, key=lambda expert: -scores.experts[layer][expert]) for layer in layers]
        self.taken: dict[Kind, dict[int, list[int]]] = {kind: {} for kind in KINDS}
        self.versions: dict[tuple[Kind, int], int] = {}

    def pieces(self, kind: Kind) -> Iterator[_Piece]:
        """What may go next of a kind."""
        for layer in (_ALL,) if self._is_common(kind) else self.layers:
            yield from self._piece(kind, layer)

    def pieces_after(self, piece: _Piece, kind: Kind) -> Iterator[_Piece]:
        """What may go next of a kind, as far as taking a piece has changed it."""
        everywhere = piece.layer == _ALL or (piece.kind == "layers" and self._is_common(kind))
        if self._is_common(kind):
            if everywhere or piece.kind == kind:
                yield from self._piece(kind, _ALL)
        elif everywhere:
            yield from self.pieces(kind)
        elif piece.layer in self.layers and kind in (piece.kind, "layers"):
            yield from self._piece(kind, piece.layer)

    def is_up_to_date(self, piece: _Piece) -> bool:
        """Whether nothing has changed since the piece was offered."""
        gone = piece.layer not in (_ALL, *self.layers) or (piece.kind == "layers" and len(self.layers) == 1)
        return not gone and self.versions[piece.kind, piece.layer] == piece.version

    def take(self, piece: _Piece) -> None:
        """Takes a piece away."""
        for layer, members in piece.members:
            self.taken[piece.kind].setdefault(layer, []).extend(members)
            if piece.kind == "layers":
                self.layers.remove(layer)
            elif piece.kind == "heads":
                self.heads[layer] = [head for head in self.heads[layer] if head not in members]
            else:
                del (self.channels if piece.kind == "channels" else self.experts)[layer][-len(members) :]

    def cuts(self) -> Cuts:
        """Everything that was taken, but for pieces of layers that went as a whole."""

        def of(kind: Kind) -> dict[int, tuple[int, ...]]:
            found = sorted(self.taken[kind].items())
            return {layer: tuple(sorted(map(int, members))) for layer, members in found if layer in self.layers}

        return Cuts(tuple(sorted(self.taken["layers"])), of("heads"), of("channels"), of("experts"))

    def _is_common(self, kind: Kind) -> bool:
        """Whether pieces of this kind go from all layers at once."""
        return kind == "experts" or (self.wanted.even and kind != "layers")

    def _piece(self, kind: Kind, layer: int) -> Iterator[_Piece]:
        layers = self.layers if layer == _ALL else [layer]
        parts = [self._part(kind, each) for each in layers]
        found = [part for part in parts if part is not None]
        version = self.versions[kind, layer] = self.versions.get((kind, layer), 0) + 1
        if len(found) < len(parts):
            return
        size, score = sum(part[1] for part in found), sum(part[2] for part in found)
        members = tuple(zip(layers, (part[0] for part in found), strict=True))
        yield _Piece(score / size, kind, layer, version, size, score, members)

    def _part(self, kind: Kind, layer: int) -> tuple[tuple[int, ...], float, float] | None:
        """(numbers, size, score) of what may go next of a kind in a layer; None if nothing may."""
        if kind == "channels":
            width = len(self.channels[layer])
            count = width % self.wanted.multiple or self.wanted.multiple
            if count >= width:
                return None
            members = tuple(self.channels[layer][-count:])
            return members, count * self.measure.channel, float(self.scores.channels[layer][list(members)].sum())
        if kind == "experts":
            if len(self.experts[layer]) <= self.fields["num_experts_per_tok"]:
                return None
            expert = self.experts[layer][-1]
            return (expert,), self.measure.expert, float(self.scores.experts[layer][expert])
        if kind == "layers":
            return (layer,), self._size_of(layer), float(self.scores.layers[layer])
        offers = [offer for offer in self._head_offers(layer) if len(offer[0]) < len(self.heads[layer])]
        return min(offers, key=lambda offer: offer[2] / offer[1], default=None)

    def _head_offers(self, layer: int) -> Iterator[tuple[tuple[int, ...], float, float]]:
        """The groups of a layer, each as a whole; where layers may differ, or have one group, also single heads."""
        groups: dict[int, list[int]] = {}
        for head in self.heads[layer]:
            groups.setdefault(head // self.group, []).append(head)
        score = self.scores.heads[layer]
        for members in groups.values():
            yield tuple(members), self.measure.attention(members, self.fields), float(score[members].sum())
        if not self.wanted.even or len(groups) == 1:
            for head in (head for members in groups.values() if len(members) > 1 for head in members):
                yield (head,), self.measure.query_head, float(score[head])

    def _size_of(self, layer: int) -> float:
        size = self.measure.layer + self.measure.attention(self.heads[layer], self.fields)
        size += len(self.experts[layer]) * self.measure.expert
        return size + len(self.channels[layer]) * self.measure.channel
