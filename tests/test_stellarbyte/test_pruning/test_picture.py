"""The picture of a pruned model holds what its reports say, whatever is gone or trained on."""

import xml.etree.ElementTree as ElementTree

import pytest

from stellarbyte.pruning.picture import pareto
from stellarbyte.pruning.report import Figures, Layer, Report

WHOLE = (Layer(4, 64, None), Layer(4, 64, None), Layer(4, 64, None))
LEFT = (Layer(1, 48, None), Layer(None, None, None), Layer(4, 8, None))


def figures(perplexity: float) -> Figures:
    return Figures(100, 200.0, 400, 1.0, perplexity, 0.1, 0.01)


def report(share: float, perplexity: float) -> Report:
    return Report(share, share, "parameters", None, figures(20.0), figures(perplexity), LEFT, WHOLE)


def drawn(*reports: Report) -> tuple[list[ElementTree.Element], str]:
    svg = pareto("runs/<mine>", reports)
    elements = list(ElementTree.fromstring(svg))
    return elements, " ".join(element.text or "" for element in elements)


def of_kind(elements: list[ElementTree.Element], kind: str) -> list[dict[str, str]]:
    return [element.attrib for element in elements if element.tag.endswith(kind)]


def test_a_point_for_each_share_and_one_beside_the_line_for_what_was_trained_on() -> None:
    reports = [report(0.9, 22.0), report(0.5, 60.0)]
    elements, words = drawn(*reports, reports[-1].recovered(figures(25.0), "it is in thin"))
    *points, ring = of_kind(elements, "circle")
    (line,) = of_kind(elements, "polyline")
    assert len(points) == len(line["points"].split()) == 3 and ring["fill"] == "#ffffff"
    assert float(points[0]["cx"]) == float(ring["cx"]) and float(points[0]["cy"]) < float(ring["cy"]), "lower is better"
    assert all(word in words for word in ("runs/<mine>", "50%", "90%", "100%", "60", "25 trained on"))


def test_two_bars_a_layer_of_what_is_left() -> None:
    elements, words = drawn(report(0.5, 60.0))
    bars = of_kind(elements, "rect")[3:]  # behind the ground and the two colours' names
    heights = [float(bar["height"]) / 150 for bar in bars]
    assert heights == pytest.approx([0.25, 0.75, 0.0, 0.0, 1.0, 0.125], abs=0.01)
    assert "heads" in words and "channels" in words


def test_the_text_names_what_each_layer_keeps_of_what_it_had() -> None:
    text = report(0.5, 60.0).text()
    assert "layer 0   keeps 1 of 4 heads, 48 of 64 channels" in text and "layer 1   is gone" in text
