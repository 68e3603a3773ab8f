"""The picture's parts add up to the whole, and the line of the chip stands where its memory ends."""

import pytest

from stellarbyte.chips import GIB
from stellarbyte.looks.chart import figure_of
from stellarbyte_jax.planning.picture import memory_chart
from stellarbyte_jax.planning.plan import make_plan
from stellarbyte_jax.planning.topology import parse_topology

TRAINING = {"attention_kernel": "reference", "batch_size": 2**13}


@pytest.mark.parametrize(("topology", "chips"), [("v5e:1x1", "its one chip"), ("v5e:4x8", "each of 32 chips")])
def test_each_part_begins_where_the_last_one_ends(planned_run, topology, chips):
    plan = make_plan(planned_run(training=TRAINING), parse_topology(topology))
    chart = memory_chart(plan)
    assert chart.title.startswith(f"{topology}: ") and chart.title.endswith(f"{chips}, fits")
    (axes,) = figure_of(chart).axes
    there = {name.replace("_", " "): size for name, size in plan.memory.parts().items() if size}
    assert [label.get_text() for label in axes.get_yticklabels()] == [*there, "total"]
    *parts, total = axes.patches
    assert [part.get_width() * GIB for part in parts] == pytest.approx([*there.values()])
    ends = [0.0, *(part.get_x() + part.get_width() for part in parts)]
    assert [part.get_x() for part in parts] == pytest.approx(ends[:-1])
    assert (total.get_x(), total.get_width() * GIB) == (0, pytest.approx(plan.memory.total))
    assert ends[-1] == pytest.approx(total.get_width())


def test_what_does_not_fit_reaches_over_the_line(planned_run):
    plan = make_plan(planned_run(training={"batch_size": 2**21}), parse_topology("v5e:1x1"))
    (axes,) = figure_of(memory_chart(plan)).axes
    (line,) = axes.lines
    assert line.get_xdata()[0] * GIB == plan.topology.chip.hbm_bytes
    assert axes.patches[-1].get_width() > line.get_xdata()[0]
    assert memory_chart(plan).title.endswith("does not fit")
