"""The page of a report: whole, safe, and of one file."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from importlib import util
from pathlib import Path

import pytest

from browser import browser, needs_browser
from stellarbyte.report.measurements import Measured, TokenLoss, TokenLosses
from stellarbyte.report.page import page
from stellarbyte.report.quantities import Lang
from test_stellarbyte.test_report import made

LANGS: tuple[Lang, ...] = ("en", "zh")
EMPTY = {"meta", "br", "col", "hr", "input", "img", "link"}
ALL = ["about", "architecture", "parameters", "memory", "flops"]
MEASURED = ["latency", "weights", "heads", "losses", "curves", "step"]


class Reader(HTMLParser):
    """Reads a page, and complains of what is closed in another order than it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.figures: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        given = dict(attrs)
        if "id" in given:
            self.ids[str(given["id"])] += 1
        self.links += [str(value) for name, value in attrs if name in ("href", "src", "xlink:href", "action")]
        if tag == "svg":
            self.figures.append(str(given["aria-label"]))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def sections(read: Reader) -> list[str]:
    return [name for name in read.ids if name in {"models", *ALL, *MEASURED}]


SUBJECTS = {
    "whole": ([made.whole()], ALL + MEASURED),
    "experts": ([made.experts()], ALL),
    "unknown": ([made.unknown()], ["architecture", "parameters", "memory"]),
    "several": ([made.whole(), made.experts(), made.unknown(made.HOSTILE)], ["models", *ALL, *MEASURED]),
}


@cache
def made_page(subject: str, lang: Lang) -> str:
    return page(SUBJECTS[subject][0], lang)


@pytest.mark.parametrize(
    ("subject", "lang"), [("whole", "en"), ("several", "zh"), ("experts", "zh"), ("unknown", "en"), ("unknown", "zh")]
)
def test_a_page(subject: str, lang: Lang) -> None:
    _, expected = SUBJECTS[subject]
    text = made_page(subject, lang)
    read = Reader(text)
    assert sections(read) == expected
    assert len(text.encode("utf-8")) < 1_000_000
    # Nothing is loaded: links lead to places of the page, and pictures are within it.
    assert all(link.startswith(("#", "data:image/png")) for link in read.links)
    assert not re.search(r"url\((?!#)|@import|<script", text)
    assert {link[1:] for link in read.links if link.startswith("#")} <= read.ids.keys()
    assert max(read.ids.values()) == 1, [name for name, times in read.ids.items() if times > 1]
    assert read.tags["table"] == read.tags["caption"] > 0
    assert read.tags["figure"] == read.tags["figcaption"] == read.tags["svg"]
    assert all(len(alt) > 8 for alt in read.figures)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
    assert ("参数" in read.text) is (lang == "zh")
    assert "mathdefault" not in text


def test_numbers_are_those_of_the_report() -> None:
    text = Reader(made_page("whole", "en")).text
    assert "5,475,328" in text and "59.2 %" in text and "34.9 MFLOP" in text and "layers.3.feed_forward" in text
    text = Reader(made_page("several", "zh")).text
    assert "5,475,328" in text and "548 万" in text


def test_definitions_are_told_once() -> None:
    first, second = made.weighed("first", "distribution"), made.weighed("second", "weights")
    text = Reader(page([first, second], "en")).text
    assert text.count("the share of numbers below a hundredth of the rms") == 1
    assert "from the distribution (first)" in text and "from the weights (second)" in text


def test_equal_layers_are_drawn_once() -> None:
    text = made_page("whole", "en")
    assert text.count(">q_proj</b>") == 1 and "× 6" in text and "Layers 0–5" in text
    text = made_page("experts", "zh")
    assert text.count(">q_proj</b>") == 2 and "8 个专家中选 2 个" in text and "最近 128 个词元" in text
    # DeepNorm normalises the stream itself, behind each sum.
    stream = text[text.index('class="stream"') :]
    assert stream.index("α·x + f(x)") < stream.index(">input_layernorm</b>")
    text = made_page("whole", "en")
    stream = text[text.index('class="stream"') :]
    assert stream.index(">input_layernorm</b>") < stream.index("x + f(x)")


def test_hostile_names_and_texts_stay_text() -> None:
    measured = made.measured_parts(made.HOSTILE * 3)
    report = made.dense(made.HOSTILE, path=made.HOSTILE, measured=measured, remarks=(made.HOSTILE,))
    read = Reader(page([report], "en"))
    assert not read.tags["script"]
    assert '<script>alert("x")</script>' in read.text


def test_without_matplotlib_there_are_tables_and_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    find = util.find_spec
    monkeypatch.setattr("stellarbyte.report.page.find_spec", lambda name: None if name == "matplotlib" else find(name))
    read = Reader(page([made.whole()], "en"))
    assert not read.tags["svg"] and read.tags["table"] > 8 and "input_layernorm" in read.text
    assert "pip install 'stellarbyte[plots]'" in read.text
    assert "The heads that are worth most" in read.text


def test_a_long_text_and_a_deep_model_are_a_small_page() -> None:
    tokens = tuple(TokenLoss("import os\n", 1.5) for _ in range(30_000))
    report = made.dense(measured=Measured(token_losses=TokenLosses(tokens, 1.5, 1.2)))
    (group,) = report.architecture.groups
    groups = tuple(replace(group, layers=(n,), parameters=n) for n in range(200))
    text = page([replace(report, architecture=replace(report.architecture, groups=groups))], "en")
    assert len(text.encode()) < 1_000_000 and "The first 3,000 tokens are shown." in text


def test_of_many_models_only_what_compares_them_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    reports = [made.dense("first"), made.dense("second")]
    assert Reader(page(reports, "en")).tags["svg"] > 6
    monkeypatch.setattr("stellarbyte.report.page._MOST_BYTES", 50_000)
    read = Reader(page(reports, "en"))
    assert read.tags["svg"] == 1 and "report fewer at once" in read.text
    assert Reader(page(reports[:1], "en")).tags["svg"] > 3, "one model has all of its own"


@needs_browser
@pytest.mark.long
@pytest.mark.parametrize("subject", ["whole", "several"])
def test_in_a_browser(subject: str, tmp_path: Path) -> None:
    """Nothing is asked of a network, nothing complains, and no width makes the page scroll sideways."""
    with browser(tmp_path / "profile") as opened:
        for lang in LANGS:
            file = tmp_path / f"{lang}.html"
            file.write_text(made_page(subject, lang), encoding="utf-8")
            for width, dark in ((390, True), (390, False), (768, False), (1280, True)):
                opened.open(file.as_uri(), width=width, dark=dark)
                opened.wait_for("document.readyState == 'complete'")
                assert opened.overflow() == 0, (lang, width)
                assert opened.evaluate(_CUT) == [], (lang, width)
        assert not opened.console
        assert all(url.startswith(("file:", "data:")) for url in opened.requests)


# Texts of charts that leave their picture, which would be cut or lie over something else.
_CUT = """[...document.querySelectorAll("svg text")].filter(text => {
  const inner = text.getBoundingClientRect(), outer = text.ownerSVGElement.getBoundingClientRect();
  return inner.left < outer.left - 4 || inner.right > outer.right + 4
    || inner.top < outer.top - 4 || inner.bottom > outer.bottom + 4;
}).map(text => text.textContent)"""
