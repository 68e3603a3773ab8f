"""The picture of a pruned model holds what its reports say, whatever is gone or trained on."""

from typing import Any

import pytest

from stellarbyte.looks import colours
from stellarbyte.looks.chart import figure_of
from stellarbyte.looks.picture import picture
from stellarbyte.pruning.picture import pareto
from stellarbyte.pruning.report import Figures, Layer, Report

WHOLE = (Layer(4, 64, None), Layer(4, 64, None), Layer(4, 64, None))
LEFT = (Layer(1, 48, None), Layer(None, None, None), Layer(4, 8, None))


def figures(perplexity: float) -> Figures:
    return Figures(100, 200.0, 400, 1.0, perplexity, 0.1, 0.01)


def report(share: float, perplexity: float) -> Report:
    return Report(share, share, "parameters", None, figures(20.0), figures(perplexity), LEFT, WHOLE)


def drawn(*reports: Report) -> tuple[Any, Any]:
    points, layers = figure_of(pareto("runs/<mine>", reports)).axes
    return points, layers


def test_a_point_for_each_share_and_one_beside_the_line_for_what_was_trained_on() -> None:
    reports = [report(0.9, 22.0), report(0.5, 60.0)]
    reports.append(reports[-1].recovered(figures(25.0), "it is in thin"))
    points, _ = drawn(*reports)
    line, ring = points.lines
    assert line.get_xydata().tolist() == [[0.5, 60.0], [0.9, 22.0], [1.0, 20.0]]
    assert ring.get_xydata().tolist() == [[0.5, 25.0]] and ring.get_markerfacecolor() == colours.GROUND
    assert [text.get_text() for text in points.texts] == ["60", "22", "20", "25 trained on"]
    svg = picture(pareto("runs/<mine>", reports))
    assert all(f">{word}</text>" in svg for word in ("runs/&lt;mine&gt;", "50%", "90%", "100%", "25 trained on"))


def test_two_bars_a_layer_of_what_is_left() -> None:
    _, layers = drawn(report(0.5, 60.0))
    heads, channels = layers.containers
    assert [bar.get_height() for bar in heads] == pytest.approx([0.25, 0.0, 1.0])
    assert [bar.get_height() for bar in channels] == pytest.approx([0.75, 0.0, 0.125])
    assert [text.get_text() for text in layers.get_legend().get_texts()] == ["heads", "channels"]


def test_the_text_names_what_each_layer_keeps_of_what_it_had() -> None:
    text = report(0.5, 60.0).text()
    assert "layer 0   keeps 1 of 4 heads, 48 of 64 channels" in text and "layer 1   is gone" in text
