"""The report has every figure, the page the worst layers, and the picture every layer."""

import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from stellarbyte.looks.chart import figure_of
from stellarbyte_torch.quantization.block_files import Contents
from stellarbyte_torch.quantization.gate import Comparison, Reference, Running
from stellarbyte_torch.quantization.picture import errors_chart
from stellarbyte_torch.quantization.quantize import LinearError
from stellarbyte_torch.quantization.report import Limits, Outcome, page, report
from stellarbyte_torch.quantization.settings import QuantizationSettings

ERRORS = [
    LinearError(f"model.layers.{layer}.mlp.{name}", 0.01 * (layer + 1), 0.02, rows=9, kept_rounding=layer == 11)
    for layer in range(12)
    for name in ("up_proj", "down_proj")
]
CONTENTS = Contents(1000, {"model.norm.weight": (8,), "model.layers.0.mlp.gate.weight": (4, 8)}, 650, ERRORS, {})


def outcome(after: float, kl: float = 0.01) -> Outcome:
    before = Reference(torch.arange(10).view(1, 10), [torch.zeros(10, 4)], nn.Linear(4, 4))
    comparison = Comparison(1.0, after, kl, 0.5, 0.9, 9)
    running = (Running(10.0, 4000), Running(12.0, 4000))
    return Outcome(QuantizationSettings(), CONTENTS, comparison, comparison, before, running, 4000, Limits(0.03, 0.05))


@pytest.mark.parametrize(("after", "verdict"), [(1.02, "PASS"), (0.9, "PASS"), (1.04, "FAIL"), (float("inf"), "FAIL")])
def test_the_verdict_is_that_of_the_perplexity(after, verdict) -> None:
    assert report(outcome(after), {})["verdict"] == verdict


@pytest.mark.parametrize(("kl", "verdict"), [(0.024, "PASS"), (0.026, "FAIL")])
def test_or_that_of_what_the_context_told(kl, verdict) -> None:
    found = report(outcome(0.9, kl), {})
    assert found["verdict"] == verdict
    assert found["held_out"]["context_lost"] == pytest.approx(2 * kl)


def test_the_report_is_json_and_nothing_is_left_out_in_silence() -> None:
    found = json.loads(json.dumps(report(outcome(1.02), {"model": "m"})))
    assert found["weights"] == {
        "all": 1040,
        "quantised": 1000,
        "bits_per_weight": 5.0,
        "kept": {"model.norm.weight": [8], "model.layers.0.mlp.gate.weight": [4, 8]},
    }
    assert found["layers"] == [asdict(error) for error in ERRORS]
    assert CONTENTS.left_out == ["model.layers.0.mlp.gate"]


def test_the_page_shows_the_worst_layers() -> None:
    text = page(report(outcome(1.02), {"model": "my-model"}))
    assert text.startswith("PASS: my-model quantised\n")
    assert "96.2% of 1,040 weights, 5.00 bits a weight in all" in text
    assert "model.norm, model.layers.N.mlp.gate" in text
    assert "model.layers.11.mlp.up_proj" in text and "(rounding kept)" in text
    assert "model.layers.0.mlp.up_proj" not in text and "and 16 more layers" in text


def test_the_picture_has_a_mark_for_each_layer_twice() -> None:
    (axes,) = figure_of(errors_chart("title", ERRORS)).axes
    rounded, ours = (line.get_ydata().tolist() for line in axes.lines)
    assert rounded == [0.02] * len(ERRORS) and ours == [error.error for error in ERRORS]
    assert axes.get_xticklabels()[1].get_text() == "0 down_proj"
