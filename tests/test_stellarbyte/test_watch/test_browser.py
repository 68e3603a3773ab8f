"""A browser watches a real run, from before it begins until it is stopped; no request leaves this machine."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from browser import Browser, browser, needs_browser
from tests.torture import make_config

from .test_watched import write

pytestmark = [needs_browser, pytest.mark.long]

POINTS = "(charts.drawn.get('chart_loss')?.plot.data[0].length ?? 0)"
TITLES = {"en": "Watching 3 runs", "zh": "正在观察 3 个训练"}
STATE = "(document.querySelector('#condition .state')?.className ?? '')"


@contextmanager
def watching(*runs: Path, words: tuple[str, ...] = ()) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of the page, and the process that serves it."""
    command = [sys.executable, "-m", "stellarbyte", "watch", *map(str, runs), "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0], process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@contextmanager
def training(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    config = make_config(folder)
    command = [sys.executable, "-m", "stellarbyte", "pretrain", str(config), "--training.max_steps=1000000"]
    command += ["--training.eval_steps=20", "--checkpoint.save_steps=20", "--checkpoint.keep_best=1"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        try:
            yield run
        finally:
            run.kill()


def test_a_real_run(page: Browser, tmp_path: Path) -> None:
    with watching(tmp_path / "run", words=("--prompt", "deep field")) as (url, server):
        page.open(url)
        page.wait_for(f"{STATE} === 'state waiting'")
        with training(tmp_path) as run:
            page.wait_for(f"{STATE} === 'state running'", 120)
            before = page.wait_for(POINTS)
            picture = page.evaluate("document.querySelector('#chart_loss canvas').toDataURL()")
            assert page.wait_for(f"{POINTS} > {before + 20}", 60), "curves grow"
            assert page.evaluate("document.querySelector('#chart_loss canvas').toDataURL()") != picture, "and move"
            page.wait_for("/of 1,000,000/.test(document.getElementById('tiles').textContent)")
            page.wait_for("/done about/.test(document.getElementById('tiles').textContent)")
            page.wait_for("document.querySelectorAll('#checkpoints tbody tr').length > 1")
            page.wait_for("/validation  loss/.test(document.getElementById('log').textContent)")
            run.send_signal(signal.SIGINT)
            run.wait(60)
        page.wait_for(f"{STATE} === 'state stopped'")
        page.wait_for("/one of the newest 2/.test(document.getElementById('checkpoints').textContent)", 120)
        page.wait_for("/step [0-9,]+deep field./.test(document.getElementById('samples').textContent)", 180)
        assert "stopped after step" in page.evaluate("document.getElementById('condition').textContent")
        assert page.console == []
        asked = {re.sub(r"\?.*", "", each) for each in page.requests if not each.startswith("data:")}
        parts = ("", "watch.css", "uPlot.iife.min.js", "charts.js", "watch.js", "runs.json", "figures.json")
        assert asked == {url + part for part in (*parts, "details.json")}
        folder = sorted(path.name for path in (tmp_path / "run").iterdir())
        assert folder == ["checkpoints", "config.yaml", "log.txt", "metrics.jsonl"], "the run's own files alone"
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 130
        assert server.stderr is not None and server.stderr.read().strip() == "stellarbyte: interrupted"
    page.wait_for("!document.getElementById('lost').hidden")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "lang"), [(1280, "en"), (390, "zh")])
def test_several_runs_on_any_screen(width: int, lang: str, dark: bool, page: Browser, tmp_path: Path) -> None:
    write(tmp_path / "runs" / "first", range(1, 41))
    write(tmp_path / "runs" / "a-very-long-name-of-a-run-that-no-phone-has-the-width-for-0123456789", range(1, 31))
    hostile = write(tmp_path / "runs" / "<img src=x onerror=alert(1)>", range(1, 21))
    (hostile / "log.txt").write_text("2026 error 0: ended: <script>alert(1)</script>\n")
    with watching(tmp_path / "runs") as (url, _):
        page.open(url, width=width, dark=dark, lang=lang)
        page.wait_for("document.querySelectorAll('#runs tbody tr').length === 3")
        page.wait_for(POINTS)
        assert page.evaluate("document.getElementById('title').textContent") == TITLES[lang]
        assert page.evaluate("document.documentElement.lang") == lang
        assert page.overflow() <= 0, "no scrolling sideways"
        assert page.evaluate("document.querySelectorAll('main img, main script').length") == 0
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") is not dark
        series = page.evaluate("charts.drawn.get('chart_loss').plot.series.length")
        page.evaluate("document.querySelector('#runs input').click()")
        page.wait_for(f"charts.drawn.get('chart_loss').plot.series.length < {series}")
        page.evaluate("document.querySelectorAll('#runs button')[0].click()")
        page.wait_for("/<script>alert/.test(document.getElementById('condition').textContent)")
        page.evaluate("document.getElementById('axis').value = 'tokens'")
        page.evaluate("document.getElementById('controls').dispatchEvent(new Event('input'))")
        page.wait_for("charts.drawn.get('chart_loss').plot.data[0].at(-1) === 400")
        assert page.console == []


def test_a_run_that_goes_on_from_an_older_step(page: Browser, tmp_path: Path) -> None:
    run = write(tmp_path / "run", range(1, 31))
    with watching(run, words=("--lang", "en")) as (url, _):
        page.open(url, lang="zh")
        page.wait_for(f"{POINTS} === 30")
        kept = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[:12]
        (run / "new").write_text("".join(kept) + json.dumps({"step": 12, "loss": 1})[:9])
        (run / "new").replace(run / "metrics.jsonl")
        page.wait_for(f"{POINTS} === 11")
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 12, "loss": 1})[9:] + "\n")
            file.write(json.dumps({"step": 12, "validation_loss": 2.0, "validation_task_quiz": 0.5}) + "\n")
        page.wait_for(f"{POINTS} === 12")
        caption = "document.querySelector('#validation_task_quiz figcaption')?.textContent"
        page.wait_for(f"{caption} === 'task quiz: share of right answers'")
        draw = "charts.draw = runs => { draws += 1; return Charts.prototype.draw.call(charts, runs); }"
        page.evaluate(f"{{ globalThis.draws = 0; {draw}; }}")
        assert page.evaluate("document.documentElement.lang") == "en"
        began = time.monotonic()
        while time.monotonic() - began < 5:  # nothing else comes
            assert page.evaluate(POINTS) == 12
            time.sleep(0.5)
        assert page.evaluate("draws") == 0, "what has not changed is not drawn again"
        page.evaluate("runs.length = 0, drawn = ''")
        page.wait_for("draws > 0")


def test_a_chart_is_read_and_zoomed(page: Browser, tmp_path: Path) -> None:
    run = write(tmp_path / "run", range(1, 41))
    reaches = "[...charts.drawn.values()].map(each => [each.plot.scales.x.min, each.plot.scales.x.max].map(Math.round))"
    with watching(run) as (url, _):
        page.open(url)
        page.wait_for(f"{POINTS} === 40")
        box = "document.querySelector('#chart_loss .u-over').getBoundingClientRect()"
        left, top, width, height = page.evaluate(f"(box => [box.x, box.y, box.width, box.height])({box})")

        def mouse(kind: str, share: float, **more: object) -> None:
            place = {"x": left + share * width, "y": top + height / 2}
            page.call("Input.dispatchMouseEvent", type=f"mouse{kind}", **place, **more)

        mouse("Moved", 0.5)
        shown = page.wait_for("document.querySelector('#chart_loss small').textContent")
        assert re.fullmatch(r"step 2\d · 0\.\d+ · validation 0\.\d+", shown)
        held = {"button": "left", "clickCount": 1, "buttons": 1}
        mouse("Pressed", 0.25, **held)
        mouse("Moved", 0.5, button="left", buttons=1)
        mouse("Released", 0.5, **held)
        zoomed = page.wait_for(f"({reaches}).every(each => each[1] < 30) && ({reaches})")
        assert len({tuple(each) for each in zoomed if each[0] > 0}) <= 2, "all charts together"
        write(run, range(41, 51))
        page.wait_for(f"{POINTS} === 50")
        assert page.evaluate(reaches) == zoomed, "what comes later leaves it zoomed"
        for count in (1, 2):
            mouse("Pressed", 0.5, button="left", clickCount=count, buttons=1)
            mouse("Released", 0.5, button="left", clickCount=count)
        page.wait_for(f"({reaches}).every(each => each[1] === 50)")
        assert page.console == []
