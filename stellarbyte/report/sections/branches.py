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
    norms = [weight for weight in group.weights if weight.part == "norms" and not _is_of_heads(weight)]
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
    if shape.parallel:
        before = [weight_node(norm, None, "norm") for norm in norms[:1]]
        sides = [tag("div", _titled(title), column(nodes), class_="side") for title, nodes in drawn]
        return _residual(html(column(before), tag("div", sides, class_="parallel")), words("sum of both"))
    each = 2 if shape.residual == "sandwich" and len(norms) >= 2 * len(drawn) else 1
    parts = []
    for number, (title, nodes) in enumerate(drawn):
        own = [weight_node(norm, None, "norm") for norm in norms[number * each : (number + 1) * each]]
        if shape.residual in ("deepnorm", "post_norm"):
            formula = words("sum deepnorm") if shape.residual == "deepnorm" else words("sum")
            parts.append(_residual(html(_titled(title), column(nodes)), formula, on_stream=own))
        else:
            parts.append(_residual(html(_titled(title), column([*own[:1], *nodes, *own[1:]])), words("sum")))
    return html(parts)


def _attention(shape: Attention, weights: Sequence[Weight], words: Words) -> list[Html]:
    """From the stream to heads and back: projections, positions, scores, output."""
    told = {
        "attention_q": words("heads of", heads=shape.query_heads, width=shape.head_dim),
        "attention_k": words("heads of", heads=shape.key_value_heads, width=shape.head_dim),
        "attention_v": words("heads of", heads=shape.key_value_heads, width=shape.value_dim),
    }
    projections = [weight_node(each, told.get(each.part)) for each in weights if _is_matrix(each, _INPUTS)]
    nodes = [row(projections)]
    in_heads = [weight for weight in weights if weight.part == "norms" and _is_of_heads(weight)]
    if in_heads:
        nodes.append(row(weight_node(weight, None, "norm") for weight in in_heads))
    if shape.positions != "none":
        nodes.append(node(words.of("positions", shape.positions), None, words("positions"), "quiet"))
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
        return _network(dense, shape.activation, shape.gated)
    nodes = [weight_node(weight, words("router")) for weight in weights if _is_matrix(weight, ("router",))]
    routed = _network([each for each in weights if _is_matrix(each, ("experts",))], shape.activation, shape.gated)
    chosen = words("experts of", chosen=shape.experts_per_token, experts=shape.experts)
    sides = [tag("div", _titled(chosen), column(routed), class_="side experts")]
    shared = [weight for weight in weights if _is_matrix(weight, ("shared_experts",))]
    if shared:
        always = words("shared of", experts=shape.shared_experts)
        drawn = column(_network(shared, shape.activation, shape.gated))
        sides.append(tag("div", _titled(always), drawn, class_="side experts"))
    nodes.append(tag("div", sides, class_="parallel") if len(sides) > 1 else sides[0])
    return nodes + (_network(dense, shape.activation, shape.gated) if dense else [])


def _network(weights: Sequence[Weight], activation: str, gated: bool) -> list[Html]:
    """The matrices into the network side by side, its activation, and the matrix out of it."""
    last = [weight for weight in weights if short(weight.name) in _LAST]
    first = [weight for weight in weights if weight not in last]
    formula = f"{activation}(gate) · up" if gated else activation
    return [row(map(weight_node, first)), node(formula, None, None, "work"), *map(weight_node, last)]


def _residual(branch: Html, formula: str, on_stream: Sequence[Html] = ()) -> Html:
    """A branch beside the stream, the sum below it, and what stands on the stream behind the sum."""
    plus = tag("div", tag("span", "+", class_="plus"), tag("small", formula), class_="sum")
    return tag(
        "div", tag("div", branch, class_="branch"), plus, column(on_stream) if on_stream else None, class_="stream"
    )


def _titled(title: str) -> Html:
    return tag("div", title, class_="branch-title")


def _is_of_heads(weight: Weight) -> bool:
    """Whether a norm is over a head's channels, as qk_norm's are."""
    return short(weight.name).startswith(("q_norm", "k_norm", "q_layernorm", "k_layernorm"))


def _is_matrix(weight: Weight, parts: tuple[str, ...]) -> bool:
    return weight.part in parts and not weight.name.endswith("bias")
