"""SVG files that stand alone: well-formed, in the reader's font, and each of their colours has one for the dark."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from browser import browser, needs_browser
from stellarbyte.errors import UserError
from stellarbyte.looks import colours
from stellarbyte.looks.chart import Chart
from stellarbyte.looks.markup import tag
from stellarbyte.looks.picture import check_drawable, diagram, picture

TITLE = 'seen "by" <all>'


def draw(figure: Any) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "o-", color=colours.SERIES[1])
    axes.set_xlabel("步 <b>")


def files() -> list[str]:
    place = {"x": 1, "y": 2, "width": 30, "height": 4}
    rects = tag("rect", **place, fill=colours.SERIES[1]), tag("rect", **place, stroke=colours.LINE)
    return [picture(Chart("a", TITLE, TITLE, draw)), diagram((40, 30), TITLE, rects)]


def test_files_stand_alone() -> None:
    for svg in files():
        root = ElementTree.fromstring(svg)
        assert svg.startswith("<svg "), "no document type of another place"
        title, style, ground = list(root)[:3]
        assert (title.text, ground.get("fill")) == (TITLE, colours.GROUND)
        assert [ground.get("width"), ground.get("height")] == str(root.get("viewBox")).split()[2:]
        drawn = svg[svg.index("</style>") :]
        used = set(re.findall(r'(?:fill|stroke)(?:: |=")(#[0-9a-f]{6})', drawn))
        assert used and all(
            f'[style*="fill: {each}"]' in str(style.text) or f'[stroke="{each}"]' in str(style.text) for each in used
        )
        assert "font-family" not in drawn and not re.findall(r'(?:src|href)="(?!#)[^"]*"', drawn)
    assert ">步 &lt;b&gt;</text>" in files()[0]
    assert files() == files(), "the same picture is the same file"


@needs_browser
def test_they_are_dark_for_who_likes_it_dark(tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as page:
        for number, svg in enumerate(files()):
            (tmp_path / f"{number}.svg").write_text(svg, encoding="utf-8")
            for dark, ground, line in ((False, "255, 255, 255", "213, 94, 0"), (True, "16, 19, 23", "240, 140, 74")):
                page.open((tmp_path / f"{number}.svg").as_uri(), dark=dark)
                seen = page.evaluate(
                    "[...document.querySelectorAll('rect, path')].flatMap(each => [getComputedStyle(each).fill, "
                    "getComputedStyle(each).stroke])"
                )
                assert f"rgb({ground})" in seen and f"rgb({line})" in seen
            assert not page.console


def test_what_is_missing_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    check_drawable("--picture plan.svg")
    monkeypatch.setattr("stellarbyte.looks.picture.find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=r"--picture plan\.svg is drawn by matplotlib, which is not installed: pip inst"
    ):
        check_drawable("--picture plan.svg")
