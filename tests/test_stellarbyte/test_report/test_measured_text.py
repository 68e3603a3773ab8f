"""What a terminal shows of what was measured."""

import math
from dataclasses import replace

from stellarbyte.report.measured_text import measured_lines, weights_lines
from stellarbyte.report.measurements import (
    AttentionFacts,
    AttentionPattern,
    Heads,
    Latency,
    LatencyPoint,
    Machine,
    MatrixFacts,
    Measured,
    StepStatistics,
    TensorStatistics,
    TokenLoss,
    TokenLosses,
    Weights,
)

MATRIX = MatrixFacts(0, "q_proj", (4, 4), 0.08, 0.0, 3.0, 3.5, 0.875, False, 0.1)


def lines(measured: Measured) -> str:
    return "\n".join("\n".join(part) for part in measured_lines(measured))


def test_weights() -> None:
    low = replace(MATRIX, layer=3, rank_share=0.2, outliers=1e-4)
    bad = replace(MATRIX, layer=None, matrix="lm_head", not_finite=12, rank_share=None, init_distance=None, small=0.5)
    said = "\n".join(weights_lines(Weights((MATRIX, low, bad), {}, "weights")))
    for words in (
        "3 matrices",
        "not finite        lm_head (12)",
        "most small ones     lm_head 50.0%, layer 0 q_proj 8.0%",
        "most outliers       layer 3 q_proj 1.00e-04",
        "lowest rank         layer 3 q_proj 20% of its side, layer 0 q_proj 88% of its side",
        "furthest from init  layer 0 q_proj 0.1",
    ):
        assert words in said
    assert weights_lines(Weights((), {}, remark="too many")) == []


def test_speed_and_text() -> None:
    machine = Machine("a card", "bfloat16", 7.9e14, 4.8e12)
    point = LatencyPoint("prefill", 4, 2048, 0.012, 0.013, 20, 682_667.0, 1e12, 1e9, "compute", 0.1, 3.25)
    said = lines(Measured(latency=Latency("torch 2.7", machine, (point,), "decode of batch 16 at 9 is left out")))
    assert "torch 2.7 in bfloat16 on a card, which reaches 790,000 GFLOP/s and 4,800.0 GB/s" in said
    assert "12.00 ms (95 % within 13.00)" in said and "682,667 tokens/s,  10% of the roofline, by compute" in said
    assert "compiled in 3.2 s" in said and said.endswith("decode of batch 16 at 9 is left out")
    losses = TokenLosses((TokenLoss("a\n", 0.5), TokenLoss("b", 2.0), TokenLoss("", None)), 1.25, 1.8, "more")
    said = lines(Measured(token_losses=losses))
    assert "3 tokens, loss 1.2500, 1.8000 bits a byte (more)" in said and "'b' 2.00, 'a\\n' 0.50" in said


def test_heads() -> None:
    rows = ((1.0, None), (2.0, 3.0))
    facts = AttentionFacts(("a",), (AttentionPattern(1, 1, ((1.0,),), "farthest"),), 9, rows, rows, ((0.1,) * 2,) * 2)
    said = lines(Measured(attention=facts, heads=Heads(rows, "how", 77)))
    assert "layer 1, head 1 looks farthest: 10% on the first, 3.0 tokens away, entropy 3.00" in said
    assert "what 3 are worth over 77 tokens" in said
    assert "most              layer 1 head 1 3, layer 1 head 0 2, layer 0 head 0 1" in said


def test_a_step() -> None:
    values = TensorStatistics("model.norm", "activation", None, 1.5, 2.5, 0.25, 7)
    tensors = (
        values,
        replace(values, kind="activation_gradient", rms=0.5),
        replace(values, name="w", kind="parameter", not_finite=0),
        replace(values, name="w", kind="gradient", not_finite=1234),
    )
    found = StepStatistics(9, 8, (16, 17), 40, math.nan, math.nan, tensors, "model.norm", "a remark")
    said = lines(Measured(step_statistics=found))
    assert "step 9: loss nan, gradient nan, 40 tokens, samples 16-17, by the weights after step 8" in said
    assert "a remark" in said and "first not finite: model.norm" in said
    (row,) = [line for line in said.splitlines() if line.startswith("  w ")]
    assert row.split() == ["w", "1.5", "2.5", "25.0%", "0", "1.5", "2.5", "25.0%", "1,234"]
    assert "all numbers are finite" in lines(Measured(step_statistics=replace(found, first_not_finite=None)))
