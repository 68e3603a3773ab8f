"""The drawing of an architecture: what stands where, for families of other orders."""

from dataclasses import replace

from stellarbyte.report.architecture import Architecture, Attention, FeedForward, LayerGroup, Weight
from stellarbyte.report.sections.branches import branches
from stellarbyte.report.sections.nodes import shape_of, short
from stellarbyte.report.words import Words
from test_stellarbyte.test_report import made

WORDS = Words("en")
SHAPE = made.dense().architecture


def norm(name: str, width: int = 256) -> Weight:
    return Weight(f"{name}.weight", (width,), "norms")


def drawn(group: LayerGroup, **changed: object) -> str:
    shape: Architecture = replace(SHAPE, **changed)  # type: ignore[arg-type]
    return str(branches(group, shape, WORDS))


def layer(*norms: Weight, attention: Attention | None = None) -> LayerGroup:
    (group,) = SHAPE.groups
    kept = tuple(weight for weight in group.weights if weight.part != "norms")
    return replace(group, weights=(*norms, *kept), attention=attention or group.attention)


def in_order(text: str, *names: str) -> bool:
    places = [text.index(f">{name}<") for name in names]
    return places == sorted(places)


def test_sandwich_norms_stand_around_their_branch() -> None:
    # Files list names by the alphabet.
    names = ("input_layernorm", "post_attention_layernorm", "post_feedforward_layernorm", "pre_feedforward_layernorm")
    text = drawn(layer(*map(norm, names)), residual="sandwich")
    assert in_order(text, "input_layernorm", "q_proj", "o_proj", "post_attention_layernorm", "x + f(x)")
    assert in_order(text, "pre_feedforward_layernorm", "gate_proj", "down_proj", "post_feedforward_layernorm")


def test_post_norm_stands_at_the_end_of_a_branch() -> None:
    text = drawn(layer(norm("post_attention_layernorm"), norm("post_feedforward_layernorm")), residual="post_norm")
    assert in_order(text, "o_proj", "post_attention_layernorm", "x + f(x)")
    assert in_order(text, "down_proj", "post_feedforward_layernorm")


def test_parallel_branches_share_a_norm_or_have_their_own() -> None:
    text = drawn(layer(norm("input_layernorm")), parallel=True)
    assert text.count("x + attention + feed-forward") == 1
    assert in_order(text, "input_layernorm", "attention", "q_proj", "feed-forward network", "gate_proj")
    text = drawn(layer(norm("ln_attn"), norm("ln_mlp")), parallel=True)
    assert in_order(text, "attention", "ln_attn", "q_proj", "feed-forward network", "ln_mlp", "gate_proj")


def test_biases_are_no_boxes_and_heads_are_told_where_they_are_made() -> None:
    bias = Weight("input_layernorm.bias", (256,), "norms")
    first = Weight("self_attn.q_a_proj.weight", (64, 256), "attention_q")
    within = norm("self_attn.q_a_layernorm", 64)
    text = drawn(layer(bias, norm("input_layernorm"), within, norm("post_attention_layernorm"), first))
    assert "input_layernorm.bias" not in text and text.count("4 heads of 64") == 1
    assert in_order(text, "input_layernorm", "q_a_layernorm", "o_proj", "post_attention_layernorm", "gate_proj")


def test_positions_and_windows() -> None:
    (group,) = SHAPE.groups
    assert group.attention is not None
    alibi = replace(group.attention, positions="alibi", window=1024, key_value_heads=4)
    text = drawn(layer(attention=alibi))
    assert "ALiBi" in text and "on the scores" in text and "the last 1,024 tokens" in text and "share a key" not in text
    assert "RoPE" not in drawn(layer(attention=replace(alibi, positions="learned")))


def test_networks_without_a_gate_and_without_a_known_activation() -> None:
    (group,) = SHAPE.groups
    weights = (
        Weight("mlp.fc1.weight", (704, 256), "feed_forward"),
        Weight("mlp.fc2.weight", (256, 704), "feed_forward"),
    )
    plain = replace(group, attention=None, feed_forward=FeedForward(704, False, "gelu_new"), weights=weights)
    assert in_order(drawn(plain), "fc1", "gelu_new", "fc2")
    unknown = replace(plain, feed_forward=FeedForward(704, False, "unknown"))
    assert in_order(drawn(unknown), "fc1", "activation", "fc2")


def test_names_and_shapes() -> None:
    assert short("self_attn.q_proj.weight") == "q_proj" and short("self_attn.q_proj.bias") == "q_proj.bias"
    assert shape_of(Weight("x", (), "other")) == "1"
    assert shape_of(Weight("x", (4096, 11008), "other", 8)) == "8 · (4,096 × 11,008)"
