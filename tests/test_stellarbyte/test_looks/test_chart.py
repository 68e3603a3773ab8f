"""Charts as SVG elements of a page."""

import re
from typing import Any

from stellarbyte.looks import chart, colours
from stellarbyte.looks.chart import Chart


def draw(figure: Any) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "o-", color=colours.SERIES[1])
    axes.imshow([[0, 1], [1, 0]], interpolation="none")
    axes.set_xlabel("步 <b>")


def test_an_svg_of_a_page() -> None:
    drawn = chart.svg(Chart("a", "A", 'seen "by" <all>', draw))
    assert drawn.startswith('<svg role="img" aria-label="seen &quot;by&quot; &lt;all&gt;" viewBox="0 0 300 200"')
    assert "步 &lt;b&gt;" in drawn, "text stays text"
    assert "font-family" not in drawn, "the page's font draws it"
    assert "var(--series-1)" in drawn and not re.search(r"#[0-9a-f]{6}\b", drawn.replace(colours.SERIES[1], ""))
    assert "http" not in drawn and "data:image/png;base64," in drawn
    assert chart.svg(Chart("a", "A", "", draw)) == chart.svg(Chart("a", "A", "", draw))


def test_ids_of_two_charts_differ() -> None:
    def ids(name: str) -> set[str]:
        return set(re.findall(r'\bid="([^"]*)"', chart.svg(Chart(name, "A", "", draw))))

    assert ids("a") and not ids("a") & ids("b")
