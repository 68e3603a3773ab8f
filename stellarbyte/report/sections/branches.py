"""Draws a layer whose computation is known: its branches, and how they join the residual stream."""

from collections.abc import Sequence

from stellarbyte.looks.markup import Html, html, tag
from stellarbyte.report.architecture import Architecture, Attention, FeedForward, LayerGroup, Weight
from stellarbyte.report.quantities import exact
from stellarbyte.report.sections.nodes import column, node, row, short, weight_node
from stellarbyte.report.words import Words

_INPUTS = ("attention_q", "attention_k", "attention_v", "attention_qkv")
# The names by which the last matrix of a feed-forward network goes.
_LAST = ("down_proj", "c_proj", "fc2", "dense_4h_to_h", "w2", "wo")


def branches(group: LayerGroup, shape: Architecture, words: Words) -> Html:
    """A layer's branches, one after the other or side by side, each from the stream and back to it."""
    scales = [weight for weight in group.weights if weight.part == "layer_scale"]
    drawn: list[tuple[str, list[Html]]] = []
    if group.attention is not None:
        drawn.append((words("attention"), _attention(group.attention, group.weights, words)))
    if group.feed_forward is not None:
        drawn.append((words("feed-forward"), _feed_forward(group.feed_forward, group.weights, words)))
    rate = shape.switches.get("drop_path_rate")
    for number, (_, nodes) in enumerate(drawn):
        if number < len(scales):
            nodes.append(weight_node(scales[number], "LayerScale", "quiet"))
        if rate:
            nodes.append(node("DropPath", None, words("up to", rate=str(rate)), "quiet"))
    norms = _norms(group.weights)
    if shape.parallel:
        shared, own = (norms[:1], []) if len(norms) < len(drawn) else ([], norms)
        for (_, nodes), norm in zip(drawn, own, strict=False):
            nodes.insert(0, weight_node(norm, None, "norm"))
        sides = [tag("div", _titled(title), column(nodes), class_="side") for title, nodes in drawn]
        first = column(weight_node(norm, None, "norm") for norm in shared)
        return _residual(html(first, tag("div", sides, class_="parallel")), words("sum of both"))
    parts = []
    for number, (title, nodes) in enumerate(drawn):
        before, after, on_stream = _places(number, norms, shape.residual, len(drawn))
        inside = html(_titled(title), column([*before, *nodes, *after]))
        formula = words("sum deepnorm") if shape.residual == "deepnorm" else words("sum")
        parts.append(_residual(inside, formula, on_stream))
    return html(parts)


def _norms(weights: Sequence[Weight]) -> list[Weight]:
    """The norms of the branches, without those within attention, such as over a head's channels."""
    return [
        each for each in weights if _is_matrix(each, ("norms",)) and each.name.removesuffix(".weight").count(".") == 0
    ]


def _places(
    number: int, norms: Sequence[Weight], residual: str | None, branches: int
) -> tuple[list[Html], list[Html], list[Html]]:
    """The norms before a branch, at its end, and on the stream behind the sum."""
    if residual == "sandwich" and len(norms) == 2 * branches:
        before = [norm for norm in norms if norm.name.startswith(("input", "pre_"))]
        after = [norm for norm in norms if norm not in before]
        pairs = (
            zip(before, after, strict=False) if len(before) == len(after) else zip(norms[::2], norms[1::2], strict=True)
        )
        # Files list names by the alphabet: the one behind attention comes before the one behind the network.
        first, last = list(pairs)[number]
        return [weight_node(first, None, "norm")], [weight_node(last, None, "norm")], []
    own = [weight_node(norm, None, "norm") for norm in norms[number : number + 1]]
    if residual == "deepnorm":
        return [], [], own
    return ([], own, []) if residual == "post_norm" else (own, [], [])


def _attention(shape: Attention, weights: Sequence[Weight], words: Words) -> list[Html]:
    """From the stream to heads and back: projections, positions, scores, output."""
    heads = {
        "attention_q": (shape.query_heads, shape.head_dim),
        "attention_k": (shape.key_value_heads, shape.head_dim),
        "attention_v": (shape.key_value_heads, shape.value_dim),
    }
    projections = []
    for weight in weights:
        if _is_matrix(weight, _INPUTS):
            number, width = heads.get(weight.part, (0, 0))
            # The first of two matrices makes no heads yet.
            told = words("heads of", heads=number, width=width) if number * width == weight.shape[0] else None
            projections.append(weight_node(weight, told))
    nodes = [row(projections)]
    within = [weight for weight in weights if _is_matrix(weight, ("norms",)) and weight not in _norms(weights)]
    if within:
        nodes.append(row(weight_node(weight, None, "norm") for weight in within))
    if shape.positions in ("xpos", "rope"):
        nodes.append(node(words.of("positions", shape.positions), None, words("positions"), "quiet"))
    elif shape.positions == "alibi":
        nodes.append(node(words.of("positions", shape.positions), None, words("on scores"), "quiet"))
    seen = words("causal") if shape.window is None else words("window", tokens=exact(shape.window))
    ratio = shape.query_heads // shape.key_value_heads if shape.key_value_heads else 1
    grouped = words("grouped", queries=ratio) if ratio > 1 else None
    nodes.append(node("softmax(q·kᵀ)·v", None, words("list").join(filter(None, (seen, grouped))), "work"))
    nodes += [weight_node(weight) for weight in weights if _is_matrix(weight, ("attention_o",))]
    return nodes


def _feed_forward(shape: FeedForward, weights: Sequence[Weight], words: Words) -> list[Html]:
    """A dense network, or the router and its experts beside the shared ones."""
    dense = [weight for weight in weights if _is_matrix(weight, ("feed_forward",))]
    if not shape.experts:
        return _network(dense, shape, words)
    nodes = [weight_node(weight, words("router")) for weight in weights if _is_matrix(weight, ("router",))]
    routed = _network([each for each in weights if _is_matrix(each, ("experts",))], shape, words)
    chosen = words("experts of", chosen=shape.experts_per_token, experts=shape.experts)
    sides = [tag("div", _titled(chosen), column(routed), class_="side experts")]
    shared = [weight for weight in weights if _is_matrix(weight, ("shared_experts",))]
    if shared:
        always = words("shared of", experts=shape.shared_experts)
        drawn = column(_network(shared, shape, words))
        sides.append(tag("div", _titled(always), drawn, class_="side experts"))
    nodes.append(tag("div", sides, class_="parallel") if len(sides) > 1 else sides[0])
    return nodes + (_network(dense, shape, words) if dense else [])


def _network(weights: Sequence[Weight], shape: FeedForward, words: Words) -> list[Html]:
    """The matrices into the network side by side, its activation, and the matrix out of it."""
    last = [weight for weight in weights if short(weight.name) in _LAST]
    first = [weight for weight in weights if weight not in last]
    activation = words("activation") if shape.activation == "unknown" else shape.activation
    formula = f"{activation}(gate) · up" if shape.gated else activation
    return [row(map(weight_node, first)), node(formula, None, None, "work"), *map(weight_node, last)]


def _residual(branch: Html, formula: str, on_stream: Sequence[Html] = ()) -> Html:
    """A branch beside the stream, the sum below it, and what stands on the stream behind the sum."""
    plus = tag("div", tag("span", "+", class_="plus"), tag("small", formula), class_="sum")
    return tag(
        "div", tag("div", branch, class_="branch"), plus, column(on_stream) if on_stream else None, class_="stream"
    )


def _titled(title: str) -> Html:
    return tag("div", title, class_="branch-title")


def _is_matrix(weight: Weight, parts: tuple[str, ...]) -> bool:
    """Whether it is a weight of these parts, and no bias beside one."""
    return weight.part in parts and not weight.name.endswith("bias")
