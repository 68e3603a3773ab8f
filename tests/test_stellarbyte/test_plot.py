"""Curves of runs: what is read of them, how they are smoothed and thinned, and the pictures."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from stellarbyte import door
from stellarbyte.curves import read_curves, read_runs, smoothed, thinned
from stellarbyte.plot import plot


def write_run(folder: Path, steps: int = 40, names: tuple[str, str] = ("validation_loss", "grad_norm")) -> Path:
    """A run whose loss falls as 8 / √step, with a spike at step 7 and a validation after each ten steps."""
    folder.mkdir(parents=True)
    validation, norm = names
    lines = []
    for step in range(1, steps + 1):
        loss = 8 * step**-0.5 + 5 * (step == 7)
        rate = None if step == 1 else 100.0
        figures = {"loss": loss, "learning_rate": 1e-3 / step, norm: 1 / step, "tokens": 50, "tokens_per_second": rate}
        lines.append({"step": step, **figures})
        if step % 10 == 0:
            lines.append({"step": step, validation: loss + 0.1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 41, "lo')
    return folder


def test_what_is_read(tmp_path: Path) -> None:
    curves = read_curves(write_run(tmp_path / "run"))
    assert list(curves["loss"].steps) == list(range(1, 41))
    assert list(curves["loss"].tokens) == [50 * step for step in range(1, 41)]
    assert curves["loss"].values == pytest.approx([8 * n**-0.5 + 5 * (n == 7) for n in range(1, 41)])
    assert list(curves["validation_loss"].steps) == [10, 20, 30, 40]
    assert list(curves["validation_loss"].tokens) == [500, 1000, 1500, 2000]
    assert list(curves["tokens_per_second"].steps) == list(range(2, 41)), "a step that compiles has no rate"
    assert "validation_bits_per_byte" not in curves
    tuned = read_curves(write_run(tmp_path / "tuned", names=("eval_loss", "grad_norm")))
    assert list(tuned["validation_loss"].steps) == [10, 20, 30, 40]


def test_smoothing_is_a_mean_of_neighbours() -> None:
    values = np.random.default_rng(0).normal(size=50)
    for window in (1, 2, 5, 8):
        middle = np.convolve(values, np.ones(window) / window, mode="valid")
        start = (window - 1) // 2
        assert smoothed(values, window)[start : start + len(middle)] == pytest.approx(middle)
    assert smoothed(values, 5)[0] == pytest.approx(values[:3].mean())
    assert smoothed(values, 5)[-1] == pytest.approx(values[-3:].mean())


def test_thinning_keeps_the_peaks() -> None:
    values = np.sin(np.arange(100_000))
    values[[777, 54_321]] = 9, -9
    places = thinned(values, 500)
    assert len(places) <= 500 and list(places) == sorted(set(places))
    assert {0, 777, 54_321, 99_999} <= set(places)
    assert list(thinned(values[:300], 500)) == list(range(300))


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("a/run", "b/run", "other")]
    assert [run.name for run in read_runs(runs)] == ["a/run", "b/run", f"{tmp_path.name}/other"]
    assert [run.name for run in read_runs(runs[1:])] == ["run", "other"]


def test_pictures(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "first $x_1$"), write_run(tmp_path / "<b>second & last", steps=25)])
    svg, page, png = (tmp_path / f"curves.{suffix}" for suffix in ("svg", "html", "png"))
    for output in (svg, page, png):
        plot(runs, output)
    words = {text.text for text in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"first $x_1$", "<b>second & last", "loss (validation dashed)", "gradient norm", "step"} <= words
    assert "validation bits per byte" not in words
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;second &amp; last</th><td>25</td><td>1,250</td>" in text
    assert "<td>1.3649</td><td>40</td>" in text, "the best validation loss, 8 / √40 + 0.1"
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"|url\((?!#)', text), "it needs nothing from elsewhere"
    assert png.read_bytes().startswith(b"\x89PNG")

    before = svg.read_bytes()
    plot(runs, svg)
    assert svg.read_bytes() == before, "the same runs are the same file"
    plot(runs, svg, by="tokens", window=10)
    assert svg.read_bytes() != before and ">tokens<" in svg.read_text(encoding="utf-8")


def test_a_long_run_is_a_small_page(tmp_path: Path) -> None:
    plot(read_runs([write_run(tmp_path / "run", steps=20_000)]), tmp_path / "curves.html")
    assert (tmp_path / "curves.html").stat().st_size < 1_000_000


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    assert door.main(["plot", str(run)]) == 0
    assert door.main(["plot", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}/curves.html\n{run}/curves.html (replaced)\n"
    assert door.main(["plot", str(run), "-o", str(tmp_path / "x.svg"), "--by", "tokens", "--smooth", "3"]) == 0
    assert (tmp_path / "x.svg").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["RUN", "-o", "x.gif"], "x.gif has the suffix .gif: end it in .html, .svg, .png"),
        (["RUN", "RUN"], "is named twice: name each once"),
        (["RUN", "--smooth", "0"], "--smooth 0 must be at least 1"),
        (["nowhere"], "nowhere holds no metrics.jsonl: name the output_dir of a run that has trained"),
        (["EMPTY"], "metrics.jsonl has recorded no figure yet"),
        (["RUN", "-o", "NOWHERE/x.svg"], "NOWHERE/x.svg cannot be written"),
    ],
)
def test_mistakes(words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"RUN": str(write_run(tmp_path / "run")), "EMPTY": str(tmp_path / "empty")}
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "NOWHERE").write_text("a file")
    words = [places.get(word, word.replace("NOWHERE", str(tmp_path / "NOWHERE"))) for word in words]
    assert door.main(["plot", *words]) == 2
    assert complaint.replace("NOWHERE", str(tmp_path / "NOWHERE")) in capsys.readouterr().err
