"""The drawing of the architecture: the residual stream from tokens to logits, equal layers folded."""

from stellarbyte.looks.markup import Html, html, tag
from stellarbyte.report.architecture import Architecture, LayerGroup
from stellarbyte.report.parts import in_words
from stellarbyte.report.quantities import count, exact
from stellarbyte.report.sections.branches import branches
from stellarbyte.report.sections.nodes import node, shape_of, weight_node, wire
from stellarbyte.report.sections.view import Section, View
from stellarbyte.report.words import Words

# Of layers that we cannot place in branches, as many tensors as are worth a reader's time.
_MOST_LISTED = 40

STYLE = """
.archs{display:grid;gap:1.5rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));align-items:start}
.arch{max-width:34rem;display:flex;flex-direction:column;align-items:flex-start;font-size:.88rem;line-height:1.35;
margin:.5rem 0}
.arch .pill{border:1.5px solid var(--muted);border-radius:2rem;padding:.25rem 1rem;background:var(--panel)}
.arch .wire{width:2px;height:.9rem;background:var(--muted);margin-left:1.5rem}
.arch small{color:var(--muted);font-size:.8rem}
.node{border:1px solid var(--line);border-radius:.45rem;background:var(--ground);padding:.3rem .55rem;min-width:0;
display:flex;flex-wrap:wrap;gap:0 .6rem;align-items:baseline;justify-content:center;text-align:center;
overflow-wrap:anywhere}
.node b{font-weight:600}.node code{color:var(--muted);font-size:.82em}
.node.norm{background:transparent;border-style:dashed;border-color:var(--muted)}
.node.quiet{border-color:transparent;background:transparent}
.node.work{border-color:transparent;background:color-mix(in srgb,var(--accent) 13%,transparent)}
.node.ghost{border-style:dotted;border-color:var(--muted)}
.group{position:relative;width:100%;border:1.5px solid var(--muted);border-radius:.7rem;background:var(--panel);
padding:.6rem .7rem .5rem}
.group.known::before{content:"";position:absolute;left:calc(1.5rem - 1.5px);top:0;bottom:0;width:2px;
background:var(--muted)}
.group-head{display:flex;flex-wrap:wrap;gap:.1rem .6rem;align-items:baseline}
.known>.group-head{padding-left:2.1rem}
.times{font-weight:700;color:var(--accent)}
.group-head small{margin-left:auto}
.stream{position:relative;padding:.15rem 0 .55rem 2.1rem}
.branch{position:relative;padding:.5rem 0 .2rem}
.branch::before{content:"";position:absolute;left:-1.3rem;width:1rem;top:1.15rem;height:2px;background:var(--muted)}
.branch::after{content:"";position:absolute;left:-.5rem;top:calc(1.15rem + 1px - .3rem);border:.3rem solid transparent;
border-left-color:var(--muted);border-right:0}
.branch-title{color:var(--muted);font-size:.8rem;margin:.15rem 0 .35rem .3rem}
.column{display:flex;flex-direction:column;gap:.3rem}
.row{display:flex;flex-wrap:wrap;gap:.3rem}.row>.node{flex:1 1 4.9rem;
min-width:min-content;flex-direction:column;align-items:center;overflow-wrap:break-word}
.parallel{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,11rem),1fr));gap:.5rem;margin-top:.3rem}
.side{min-width:0}.side.experts{border:1px dashed var(--muted);border-radius:.5rem;padding:.15rem .4rem .4rem}
.sum{position:relative;display:flex;align-items:center;gap:1.75rem;margin:.25rem 0 .1rem -2.08rem}
.sum::before{content:"";position:absolute;left:1.85rem;width:1.2rem;top:calc(50% - 1px);height:2px;
background:var(--muted)}
.sum::after{content:"";position:absolute;left:1.62rem;top:calc(50% - .3rem);border:.3rem solid transparent;
border-right-color:var(--muted);border-left:0}
.plus{position:relative;display:grid;place-items:center;width:1.6rem;height:1.6rem;border:2px solid var(--muted);
border-radius:50%;background:var(--ground);font-weight:700;line-height:1}
.stream>.column{margin:.45rem 0 0 -2.1rem;position:relative;align-items:flex-start}
.stream>.column>.node{background:var(--panel)}
.switches{display:flex;flex-wrap:wrap;gap:.35rem;list-style:none;padding:0;margin:.25rem 0 1rem;font-size:.85rem}
.switches li{border:1px solid var(--line);border-radius:1rem;padding:.08rem .7rem;overflow-wrap:anywhere}
.listed{display:grid;grid-template-columns:1fr auto;gap:.1rem .8rem;margin:.2rem 0 .5rem;font-size:.8rem}
.listed dt{overflow-wrap:anywhere}.listed dd{margin:0;text-align:right;color:var(--muted)}
"""


def architecture(view: View) -> Section:
    """The models' drawings beside each other."""
    drawn = [
        tag(
            "div",
            tag("h3", report.name) if len(view.reports) > 1 else None,
            _switches(report.architecture, view.words),
            _drawing(report.architecture, view.words),
        )
        for report in view.reports
    ]
    body = html(tag("div", drawn, class_="archs"), view.note("shapes note"))
    return Section("architecture", view.words("section.architecture"), body)


def _switches(shape: Architecture, words: Words) -> Html | None:
    """The fields that are not at their defaults."""
    found = [tag("li", tag("code", name), f" {_value(value)}") for name, value in shape.switches.items()]
    return tag("ul", found, class_="switches", aria_label=words("switches")) if found else None


def _value(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return exact(value) if isinstance(value, int) else str(value)


def _drawing(shape: Architecture, words: Words) -> Html:
    matrices = [weight for weight in shape.outside if not weight.name.endswith("bias")]
    # Some families normalise the embeddings.
    before = [each for each in matrices if each.part in ("embedding", "positions") or "embed" in each.name]
    after = [weight for weight in matrices if weight not in before]
    ends = [weight_node(weight) for weight in after]
    if shape.tied and not any(weight.part == "head" for weight in after):
        ends.append(node("lm_head", None, words("tied head"), "ghost"))
    vocabulary = exact(shape.vocab_size) if shape.vocab_size else "V"
    return tag(
        "div",
        tag("div", words("token ids"), class_="pill"),
        [(wire(), weight_node(weight)) for weight in before],
        [(wire(), _group(group, shape, words)) for group in shape.groups],
        [(wire(), end) for end in ends],
        wire(),
        tag("div", words("logits", number=vocabulary), class_="pill"),
        class_="arch",
    )


def _group(group: LayerGroup, shape: Architecture, words: Words) -> Html:
    """Equal layers, drawn once."""
    many, size = len(group.layers), count(group.parameters, words.lang)
    head = tag(
        "div",
        tag("b", words("layer numbers" if many > 1 else "layer number", numbers=in_words(group.layers))),
        tag("span", f"× {many}", class_="times") if many > 1 else None,
        tag("small", words("parameters each" if many > 1 else "parameters of", number=size)),
        class_="group-head",
    )
    is_known = shape.residual is not None and (group.attention is not None or group.feed_forward is not None)
    inside = branches(group, shape, words) if is_known else _listed(group, words)
    return tag("div", head, inside, class_="group known block" if is_known else "group block")


def _listed(group: LayerGroup, words: Words) -> Html:
    """The tensors of a layer whose computation is not known."""
    lines = [(tag("dt", weight.name), tag("dd", shape_of(weight))) for weight in group.weights[:_MOST_LISTED]]
    more = len(group.weights) - _MOST_LISTED
    return html(tag("dl", lines, class_="listed mono"), tag("small", words("more", number=more)) if more > 0 else None)
