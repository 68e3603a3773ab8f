"""What goes: to the share that is wanted, the least important first, and never more than a model can do without."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError
from stellarbyte.pruning.choice import Choice, Wanted, choose
from stellarbyte.pruning.cuts import KINDS, Cuts
from stellarbyte.pruning.scores import Scores

DENSE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 8}
DENSE |= {"num_key_value_heads": 4, "head_dim": 8}
SPARSE = DENSE | {"num_experts": 8, "moe_intermediate_size": 16}


def fields_of(**changes: Any) -> dict[str, Any]:
    return vars(ByteConfig(**{**DENSE, **changes}))


def drawn_scores(fields: dict[str, Any], seed: int) -> Scores:
    generator, L = np.random.default_rng(seed), fields["num_hidden_layers"]
    size = fields["intermediate_size"]
    widths = [size] * L if isinstance(size, int) else size
    return Scores(
        [generator.exponential(8, fields["num_attention_heads"]) for _ in range(L)],
        [generator.exponential(1, width) for width in widths],
        [generator.exponential(9, fields["num_experts"]) for _ in range(L)],
        generator.exponential(90, L),
    )


@given(
    st.booleans(),
    st.floats(0.3, 0.98),
    st.sets(st.sampled_from(KINDS), min_size=1),
    st.sampled_from(("parameters", "flops")),
    st.booleans(),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_the_share_is_what_was_wanted_or_a_sentence_says_why(sparse, keep, what, by, even, multiple, seed) -> None:
    what -= {"channels"} if sparse else {"experts"}
    fields = fields_of(**(SPARSE if sparse else {}), pruned_heads=None if even else ((0,), (), (1, 2), (), (), ()))
    wanted = Wanted(keep, tuple(sorted(what)), by, even, multiple)
    if not what:
        return
    try:
        found = choose(fields, drawn_scores(fields, seed), wanted)
    except UserError:
        return
    measure, cuts = wanted.measure(fields), found.cuts
    assert found.share == pytest.approx(measure.left(fields, cuts) / measure.left(fields))
    assert abs(found.share - keep) <= 0.01 + 1e-9 or (found.remark or "").startswith(f"{found.share:.1%} of the {by}")
    after = ByteConfig(**{name: value for name, value in fields.items() if name in ByteConfig.__dataclass_fields__})
    after = dataclasses.replace(after, **cuts.fields_after(fields))  # which refuses a layer without heads
    assert all(width % multiple == 0 or width == 96 for width in after.intermediate_sizes)
    if even:
        assert after.pruned_heads is None and isinstance(after.intermediate_size, int)


def test_the_least_important_for_its_size_goes_first() -> None:
    fields = fields_of(num_hidden_layers=2, num_key_value_heads=8)
    found = drawn_scores(fields, 0)
    choice = choose(fields, found, Wanted(0.8, ("channels",), multiple=1))
    gone = {(layer, channel) for layer, channels in choice.cuts.channels.items() for channel in channels}
    ranked = sorted((found.channels[layer][channel], (layer, channel)) for layer in (0, 1) for channel in range(96))
    assert gone == {place for _, place in ranked[: len(gone)]}
    # A head has the size of 4 * 8 / 3 channels.
    both = choose(fields, found, Wanted(0.8, ("channels", "heads"), multiple=1)).cuts
    worst = max(found.heads[layer][head] for layer, heads in both.heads.items() for head in heads)
    best = min(score for layer in (0, 1) for score in np.delete(found.channels[layer], both.channels[layer]))
    assert worst * 3 / 32 <= best


def test_a_group_whose_heads_are_worth_little_goes_with_its_keys() -> None:
    fields = fields_of(num_hidden_layers=1)
    found = drawn_scores(fields, 0)
    found.heads[0][:] = [9, 9, 1, 1.5, 9, 9, 9, 0.9]
    choice = choose(fields, found, Wanted(0.91, ("heads",)))
    assert choice.cuts.heads == {0: (2, 3)}


def test_layers_go_as_a_whole_where_they_are_worth_less_than_their_pieces() -> None:
    fields = fields_of()
    found = drawn_scores(fields, 0)
    found.layers[:] = 1e6
    found.layers[4] = 0
    choice = choose(fields, found, Wanted(0.8, ("heads", "channels", "layers")))
    assert choice.cuts.layers == (4,)
    assert not {4} & {*choice.cuts.heads, *choice.cuts.channels}
    assert choice.remark is None and choice.share == pytest.approx(0.8, abs=0.01)


def test_as_many_experts_go_in_each_layer_and_enough_stay() -> None:
    fields = fields_of(**SPARSE)
    found = drawn_scores(fields, 0)
    choice = choose(fields, found, Wanted(0.6, ("experts",)))
    counts = {len(experts) for experts in choice.cuts.experts.values()}
    assert len(counts) == 1 and len(choice.cuts.experts) == 6
    for layer, gone in choice.cuts.experts.items():
        assert set(gone) == set(np.argsort(found.experts[layer])[: len(gone)])
    with pytest.raises(UserError, match=r"--keep 10.0% is too little: of experts only so much can go that "):
        choose(fields, found, Wanted(0.1, ("experts",)))


@pytest.mark.parametrize(
    ("changes", "wanted", "message"),
    [
        ({}, Wanted(0.0), r"--keep 0 must be above 0 and below 1"),
        ({}, Wanted(1.2), r"--keep 1\.2 must be above 0 and below 1"),
        ({}, Wanted(0.02), r"--keep 2\.0% is too little: of heads, channels only so much can go"),
        ({}, Wanted(0.9, ("experts",)), r"--what experts needs a model with experts, and this one has none"),
        (SPARSE, Wanted(0.9, ("channels",)), r"--what channels is for dense feed-forward networks"),
        ({}, Wanted(0.9, ("heads", "heads")), r"--what heads,heads must name one or more of heads, .*, each once"),
        ({}, Wanted(0.9, multiple=0), r"--multiple 0 must be at least 1"),
        ({"num_hidden_layers": 2, "intermediate_size": (8, 16)}, Wanted(0.9, even=True), r"--even needs layers of one"),
        ({"num_hidden_layers": 1, "pruned_heads": ((0,),)}, Wanted(0.9, even=True), r"--even needs equally many heads"),
        ({}, Wanted(0.97, ("layers",)), r"--keep 97\.0% leaves the model whole: the smallest of the layers that could"),
    ],
)
def test_what_cannot_be_wanted(changes: dict[str, Any], wanted: Wanted, message: str) -> None:
    fields = fields_of(**changes)
    with pytest.raises(UserError, match=message):
        choose(fields, drawn_scores(fields, 0), wanted)


def test_nothing_else_than_heads_is_renumbered() -> None:
    fields = fields_of(num_hidden_layers=3, pruned_heads=((0,), (1,), (2, 3)))
    cuts = Cuts(layers=(1,), heads={0: (7,)}, channels={2: (0, 1)})
    assert cuts.fields_after(fields) == {
        "num_hidden_layers": 2,
        "head_dim": 8,
        "intermediate_size": (96, 94),
        "pruned_heads": ((0, 7), (2, 3)),
    }
    assert isinstance(choose(fields, drawn_scores(fields, 0), Wanted(0.9)), Choice)
