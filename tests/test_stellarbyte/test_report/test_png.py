"""The pictures of a report: every chart, and every glyph."""

import warnings
from pathlib import Path

import pytest

from stellarbyte.looks import chart, fonts
from stellarbyte.report.png import all_charts, write_pictures
from stellarbyte.report.words import Words
from test_stellarbyte.test_report import made

needs_chinese = pytest.mark.skipif(
    fonts.families_for("参数") is None, reason="no font of this machine has Chinese glyphs: install fonts-noto-cjk"
)


@pytest.fixture
def only_dejavu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no font but the one that comes with matplotlib."""
    monkeypatch.setattr(fonts, "_installed", lambda: ["DejaVu Sans"])


@pytest.mark.long
@needs_chinese
def test_chinese_pictures(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that is missing
        paths, remark = write_pictures(tmp_path, [made.whole(made.HOSTILE.replace("\x1b", ""))], "zh")
    assert remark is None and len(paths) == len(set(paths)) > 20
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


@pytest.mark.usefixtures("only_dejavu")
def test_without_chinese_glyphs_labels_are_english(tmp_path: Path) -> None:
    report = made.experts()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths, remark = write_pictures(tmp_path, [report], "zh")
    assert remark is not None and "labels are English" in remark and "apt install fonts-noto-cjk" in remark
    assert {path.name for path in paths} >= {"parameters.png", "training-memory.png", "decode-flops.png"}


@pytest.mark.long
@pytest.mark.usefixtures("only_dejavu")
def test_a_name_without_glyphs_is_escaped(tmp_path: Path) -> None:
    reports = [made.dense("模型"), made.dense("other")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths, remark = write_pictures(tmp_path, reports, "en")
    assert remark is not None and remark.startswith("characters that no font here has are written as \\u4e2d")
    assert "radar.png" in {path.name for path in paths} and len(set(paths)) == len(paths)


def test_of_several_models_names_begin_files() -> None:
    reports = [made.dense("a/b"), made.dense(made.HOSTILE)]
    names = [each.name for each in all_charts(reports, Words("en"))]
    assert names[:2] == ["radar", "1-a-b-parameters"] and len(set(names)) == len(names)
    assert not any(set("/<> \x1b") & set(name) for name in names)


@needs_chinese
def test_texts_that_a_picture_shows_are_all_asked_for() -> None:
    (pie, *_) = all_charts([made.dense()], Words("zh"))
    assert set("参数占比词嵌入") <= set(chart.texts(pie))
