"""The boxes that the drawing of an architecture is made of."""

from collections.abc import Iterable

from stellarbyte.looks.markup import Content, Html, tag
from stellarbyte.report.architecture import Weight
from stellarbyte.report.quantities import exact


def node(name: Content, shape: Content = None, told: Content = None, kind: str = "") -> Html:
    """A box: a name, the shape of its weights, and a remark in small letters."""
    inside = (tag("code", shape) if shape else None, tag("small", told) if told else None)
    return tag("div", tag("b", name), inside, class_=f"node {kind}".strip())


def weight_node(weight: Weight, told: Content = None, kind: str = "") -> Html:
    """The box of a weight: its last words and its shape."""
    return node(short(weight.name), shape_of(weight), told, kind)


def short(name: str) -> str:
    """A weight's name without what every weight's has: q_proj for self_attn.q_proj.weight, q_proj.bias of a bias."""
    parts = name.removesuffix(".weight").split(".")
    return ".".join(parts[-2:] if parts[-1] == "bias" else parts[-1:])


def shape_of(weight: Weight) -> str:
    """A weight's shape, and how many there are of it."""
    sizes = " × ".join(map(exact, weight.shape)) or "1"
    return f"{weight.copies} · ({sizes})" if weight.copies > 1 else sizes


def column(nodes: Iterable[Html]) -> Html:
    """Boxes below each other, in the order of computation."""
    return tag("div", list(nodes), class_="column")


def row(nodes: Iterable[Html]) -> Html:
    """Boxes beside each other, which work on the same input."""
    return tag("div", list(nodes), class_="row")


def wire() -> Html:
    """The line between two boxes."""
    return tag("div", class_="wire", aria_hidden="true")
