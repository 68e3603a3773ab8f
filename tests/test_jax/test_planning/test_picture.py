"""The picture is well-formed, its bars add up, and nothing lies outside it."""

import xml.etree.ElementTree as ElementTree

import pytest

from stellarbyte_jax.planning.picture import memory_picture
from stellarbyte_jax.planning.plan import make_plan
from stellarbyte_jax.planning.topology import parse_topology

SVG = "{http://www.w3.org/2000/svg}"
TRAINING = {"attention_kernel": "reference", "batch_size": 2**13}


@pytest.mark.parametrize(("topology", "bars"), [("v5e:1x1", 1), ("v5e:2x2", 4), ("v5e:4x8", 16)])
def test_each_chip_and_part(planned_run, topology, bars):
    plan = make_plan(planned_run(training=TRAINING), parse_topology(topology))
    picture = ElementTree.fromstring(memory_picture(plan))
    there = {name: size for name, size in plan.memory.parts().items() if size}
    drawn = [rect for rect in picture.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    assert len(drawn) == bars * len(there)
    first = [float(rect.get("height", 0)) for rect in drawn[: len(there)]]
    assert sum(first) / (396 - 84) == pytest.approx(plan.memory.total / (1.04 * plan.topology.chip.hbm_bytes), abs=1e-3)
    for rect in picture.iter(f"{SVG}rect"):
        assert float(rect.get("y", 0)) + float(rect.get("height", 0)) <= 440


def test_what_does_not_fit_reaches_over_the_line(planned_run):
    plan = make_plan(planned_run(training={"batch_size": 2**21}), parse_topology("v5e:1x1"))
    picture = ElementTree.fromstring(memory_picture(plan))
    (limit,) = (line for line in picture.iter(f"{SVG}line") if line.get("stroke-dasharray"))
    bars = [rect for rect in picture.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    assert min(float(rect.get("y", 0)) for rect in bars) < float(limit.get("y1", 0))
