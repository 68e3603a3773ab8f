"""Figures of texts against calculations by hand."""

import json
import math

import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte.evaluation.figures import Figures
from stellarbyte.evaluation.measuring import BLOCK_BYTES, Measured, measure
from stellarbyte.evaluation.report import measured_text
from stellarbyte.evaluation.scorer import Encoded
from stellarbyte.evaluation.texts import Text
from stellarbyte.evaluation.windows import Windows
from stellarbyte.figures import finite_json

from .scorers import ByteScorer

TEXTS = [Text("abc def", "x"), Text(" ", "x"), Text("é" * 9 + " end\n", "y"), Text("a" * 40, "y")]


class Mute(ByteScorer):
    def encode(self, text: str) -> Encoded:
        return Encoded(*[super().encode(text).ids[:0]] * 2)


def measured(scorer: ByteScorer, windows: Windows, texts: list[Text] = TEXTS, batch_tokens: int = 64) -> Measured:
    return measure(scorer, texts, windows, batch_tokens)


@pytest.mark.parametrize("batch_tokens", [1, 16, 64, 4096])
@pytest.mark.parametrize("windows", [Windows(8, 8), Windows(8, 3), Windows(5, 1)])
def test_figures_equal_a_calculation_by_hand(windows: Windows, batch_tokens: int) -> None:
    """Of every token the context by lm-eval's picture: all before it in its window."""
    found = measured(ByteScorer(), windows, batch_tokens=batch_tokens)
    for name, some in (("x", TEXTS[:2]), ("y", TEXTS[2:])):
        nats = 0.0
        for text in some:
            data, done = text.text.encode(), 0
            while done < len(data):
                count = min(windows.stride if done else windows.window, len(data) - done)
                start = max(0, done + count - windows.window)
                nats += sum(1 / (place - start + 1) + data[place] / 256 for place in range(done, done + count))
                done += count
        figures, size = found.domains[name].to_dict(), sum(len(text.text.encode()) for text in some)
        assert figures["bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-9)
        assert figures["loss"] == pytest.approx(nats / size, rel=1e-9)
        assert figures["tokens"] == figures["bytes"] == size
        evens = sum(byte % 2 == 0 for text in some for byte in text.text.encode())
        assert figures["accuracy"] == pytest.approx(evens / size)
        assert figures["calibration_error"] == pytest.approx(abs(evens / size - 0.7))
    # "abc def" and " " are 2 + 2 words for lm-eval, "… end\n" 3.
    assert (found.domains["x"].words, found.domains["y"].words) == (4, 4)
    assert found.whole.tokens == sum(figures.tokens for figures in found.domains.values())
    assert sum(document.nats.sum() for document in found.documents) == pytest.approx(found.whole.nats)


def test_calibration_bins() -> None:
    figures = Figures()
    top = np.array([0.0, 0.04, 1 / 15, 0.0667, 0.5, 1.0])
    with np.errstate(divide="ignore"):
        figures.add_tokens(np.zeros(6), np.log(top), np.array([False, True, False, True, True, False]))
    assert figures.tokens_M.tolist() == [3, 1, *[0] * 5, 1, *[0] * 6, 1]
    assert figures.hits_M.tolist() == [1, 1, *[0] * 5, 1, *[0] * 6, 0]
    by_hand = (abs(1 - 0.04 - 1 / 15) + (1 - 0.0667) + 0.5 + 1.0) / 6
    assert figures.calibration_error == pytest.approx(by_hand)
    figures.add_text("x", 1)
    bins = figures.to_dict()["calibration_bins"]
    assert [each["tokens"] for each in bins][:2] == [3, 1]
    assert bins[2]["confidence"] is None
    assert bins[-1] == {"from": 0.933333, "to": 1.0, "tokens": 1, "confidence": 1.0, "accuracy": 0.0}


def test_few_shapes_are_given_to_the_model() -> None:
    scorer = ByteScorer(100)
    texts = [Text("a" * length, "x") for length in range(1, 131)]
    measured(scorer, Windows(100, 100), texts, batch_tokens=200)
    assert {length for _, length in scorer.shapes} == {32, 48, 64, 96, 100}
    assert {count for count, _ in scorer.shapes} <= {1, 2, 4, 8}
    assert len(scorer.context) == sum(range(1, 131))


@pytest.mark.parametrize("step", [1, 3])
def test_blocks_of_a_long_text_have_the_losses_of_the_tokens_that_begin_there(step: int) -> None:
    text = "éa" * (4 * BLOCK_BYTES // 3)  # four blocks, whose middle falls into a character
    (document,) = measured(ByteScorer(64, step=step), Windows(64, 64), [Text(text, "x")]).documents
    assert len(document.bytes) == 4
    assert document.bytes.sum() == len(text.encode())
    edges, data = np.cumsum([0, *document.bytes]), text.encode()
    assert all((data[edge] & 0xC0) != 0x80 for edge in edges[:-1])
    assert np.abs(document.bytes - len(data) / 4).max() <= 2
    counted = measured(ByteScorer(64, step=step), Windows(64, 64), [Text(data[: edges[1]].decode(), "x")])
    assert document.nats[0] == pytest.approx(counted.whole.nats, rel=1e-2)


def test_what_is_shown_and_its_json() -> None:
    found = measured(ByteScorer(), Windows(8, 4))
    lines = measured_text(found).splitlines()
    assert lines[0] == "bytes (step 3), float32; windows of 8 tokens, 4 of them scored in each but the first"
    assert [line.split()[0] for line in lines[1:5]] == ["domain", "x", "y", "all"]
    assert "expected calibration error, 15 bins" in lines[-1]
    record = json.loads(json.dumps(found.to_dict()))
    assert (record["window"], record["stride"], list(record["domains"])) == (8, 4, ["x", "y"])
    one = measured(ByteScorer(), Windows(8, 8), TEXTS[:1])
    assert [line.split()[0] for line in measured_text(one).splitlines()[1:3]] == ["domain", "x"]
    assert finite_json({"a": [math.inf, 1.0], "b": {"c": math.nan}}) == {"a": [None, 1.0], "b": {"c": None}}


def test_what_has_no_figures_is_refused() -> None:
    with pytest.raises(UserError, match="the texts of --data make no tokens"):
        measured(Mute(), Windows(8, 8))
    with pytest.raises(UserError, match="the loss of bytes on these texts is nan: its weights are of no use"):
        measured(ByteScorer(worse=math.nan), Windows(8, 8))
