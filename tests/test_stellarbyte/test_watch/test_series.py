"""What a page is given is what the run has recorded, whole or since its last question."""

import json
from typing import Any

import pytest

from stellarbyte.watch.outlook import outlook, patience
from stellarbyte.watch.series import Series


def lines(steps: range, **more: Any) -> list[bytes]:
    return [json.dumps({"step": n, "loss": 8 / n, "tokens": 10, "step_seconds": 0.5, **more}).encode() for n in steps]


def points(answer: dict[str, Any], name: str) -> list[tuple[int, float, float]]:
    figure = answer["figures"][name]
    return list(zip(figure["steps"], figure["tokens"], figure["values"], strict=True))


def test_whole_and_since() -> None:
    series = Series()
    series.add(lines(range(1, 5)))
    series.add([b'{"step": 4, "validation_loss": 2.5}', b"no record", b'{"loss": 1}', b'{"step": 5, "loss": null}'])
    whole = series.since(-1, -1)
    assert whole["whole"] and whole["count"] == 6 and series.last == 5
    assert points(whole, "loss") == [(1, 10, 8.0), (2, 20, 4.0), (3, 30, 8 / 3), (4, 40, 2.0)]
    assert points(whole, "validation_loss") == [(4, 40, 2.5)]
    series.add(lines(range(6, 8)))
    news = series.since(0, 6)
    assert not news["whole"] and [step for step, _, _ in points(news, "loss")] == [6, 7]
    assert "validation_loss" not in news["figures"]
    assert series.since(0, 8)["figures"] == {} and series.since(0, 9)["whole"]
    assert json.dumps(whole, allow_nan=False)


def test_a_run_that_goes_on_from_an_older_step() -> None:
    series = Series()
    series.add(lines(range(1, 9)))
    series.begin_anew()
    series.add(lines(range(1, 4)))
    news = series.since(0, 8)
    assert news["whole"] and news["generation"] == 1 and len(points(news, "loss")) == 3 and series.last == 3


def test_a_long_run_is_thinned_and_keeps_its_peaks() -> None:
    series = Series()
    series.add(lines(range(1, 2_001)))
    series.add([b'{"step": 2001, "loss": 99.0, "tokens": 1}'])
    series.add(lines(range(2_002, 4_000)))
    assert series.since(0, 0)["whole"], "more than a page needs to add to what it has"
    found = points(series.since(-1, 0), "loss")
    assert len(found) <= 1500 and max(value for _, _, value in found) == 99.0 and found[-1][0] == 3_999


def test_former_names_and_numbers_that_are_none() -> None:
    series = Series()
    series.add([b'{"step": 1, "eval_loss": 3.5}', b'{"step": 2, "loss": 1e999}', b'{"step": 99999999999999999999}'])
    assert series.latest("validation_loss") == 3.5 and series.latest("loss") is None and series.count == 2
    assert series.best("validation_loss") == (1, 3.5) and series.best("loss") is None
    assert series.at_step("validation_loss", 1) == 3.5 and series.at_step("validation_loss", 2) is None


def test_the_outlook() -> None:
    series = Series()
    assert outlook(series, 100, 10).seconds_left is None
    series.add(lines(range(1, 41), tokens_per_second=20.0))
    series.add([b'{"step": 40, "validation_loss": 2, "validation_seconds": 3.0}'])
    found = outlook(series, 100, 20)
    assert found.seconds_per_step == 0.5 and found.tokens_per_second == pytest.approx(20.0)
    assert found.seconds_left == 60 * 0.5 + 3 * 3.0
    assert outlook(series, None, None).seconds_left is None and outlook(series, 40, None).seconds_left is None
    series.add(lines(range(41, 42), checkpoint_seconds=4.1))
    assert outlook(series, 100, None).seconds_left == pytest.approx(59 * (0.5 + 0.1))


def test_how_long_a_run_may_be_silent() -> None:
    series = Series()
    assert patience(series) == 120
    series.add([b'{"step": 1, "loss": 1, "compile_seconds": 90}'])
    assert patience(series) == 900
