"""Fonts of PNGs: every glyph that a text needs, by the fonts' own tables."""

import logging
import warnings
from pathlib import Path

import pytest

from stellarbyte.looks import chart, fonts
from stellarbyte.looks.chart import Chart

CHINESE = "参数量 (亿)"
HAS_CHINESE = fonts.families_for(CHINESE) is not None


@pytest.fixture
def only_dejavu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no font but the one that comes with matplotlib."""
    monkeypatch.setattr(fonts, "_installed", lambda: ["DejaVu Sans"])


def titled(title: str) -> Chart:
    return Chart("x", title, title, lambda figure: figure.subplots().set_xlabel(title))


@pytest.mark.usefixtures("only_dejavu")
def test_a_font_that_has_no_chinese_is_not_taken() -> None:
    assert fonts.families_for("loss -1" + fonts.PRINTABLE) == ["DejaVu Sans"]
    assert fonts.families_for(CHINESE) is None
    assert fonts.drawable("a 模\U0001f916", ["DejaVu Sans"]) == "a \\u6a21\\U0001f916"


@pytest.mark.skipif(not HAS_CHINESE, reason="no font of this machine has Chinese glyphs: install fonts-noto-cjk")
def test_a_chinese_picture_has_every_glyph(caplog: pytest.LogCaptureFixture) -> None:
    families = fonts.families_for(CHINESE + fonts.PRINTABLE)
    assert families is not None
    glyphs = frozenset().union(*map(fonts._glyphs, families))
    drawn = titled(CHINESE)
    assert {ord(each) for each in chart.texts(drawn) if not each.isspace()} <= glyphs
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        assert chart.png(drawn, families).startswith(b"\x89PNG")
    assert not caplog.records


def test_a_missing_glyph_would_be_seen() -> None:
    with pytest.warns(UserWarning, match="missing"):
        chart.png(titled("\U0010fffd" if HAS_CHINESE else CHINESE), ["DejaVu Sans"])


def test_fonts_that_are_installed_later_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib keeps its list of fonts in a file, which an installation does not change."""
    from matplotlib import font_manager

    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    added: list[str] = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "damaged.ttf"), "new.ttf"])
    monkeypatch.setattr(font_manager.fontManager, "addfont", lambda path: added.append(path))
    fonts._installed.__wrapped__()
    assert added == sorted([str(tmp_path / "damaged.ttf"), "new.ttf"])
