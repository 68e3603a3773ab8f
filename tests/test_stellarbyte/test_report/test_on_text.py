"""What is measured on a text, by a model that answers as it is told."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte.evaluation.scorer import Encoded, TokenScores
from stellarbyte.report.measurements import AttentionFacts
from stellarbyte.report.on_text import BEGIN, ROW_TOKENS, ROWS, measure_on_text, pieces


class Model:
    """Takes each byte for a token, whose loss is its number over 100; it cannot say what heads are worth."""

    name, begin = "a model", 256

    def __init__(self, positions: int = 4096) -> None:
        self.positions, self.facts = positions, dict[str, Any]()
        self.read: Sequence[str] = ()
        self.rows: Sequence[np.ndarray] = ()

    @property
    def scorer(self) -> "Model":
        return self

    def encode(self, text: str) -> Encoded:
        data = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        return Encoded(data, np.arange(len(data)))

    def score(self, ids_BT: np.ndarray, labels_BT: np.ndarray, lengths_B: np.ndarray) -> TokenScores:
        assert ids_BT[0, 0] == self.begin and lengths_B.tolist() == [ids_BT.shape[1]]
        assert (ids_BT[:, 1:] == labels_BT[:, :-1]).all()
        losses = np.where(labels_BT == ord("!"), np.nan, labels_BT / 100)
        return TokenScores(-losses, losses, losses > 0)

    def attention(self, ids_T: np.ndarray, texts: Sequence[str]) -> AttentionFacts | str:
        assert len(ids_T) == len(texts)
        self.read = texts
        return "attention is not known"

    def heads(self, rows: Sequence[np.ndarray]) -> tuple[tuple[float | None, ...], ...] | str:
        self.rows = rows
        return ((1.0, None),)


def written(folder: Path, *documents: str) -> str:
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return str(path)


def test_losses_of_a_whole_text(tmp_path: Path) -> None:
    model = Model()
    found = measure_on_text(model, written(tmp_path, "az"))
    a, z = 0.97, 1.22
    assert [(token.text, token.loss) for token in found.token_losses.tokens] == [
        ("a", pytest.approx(a)),
        ("z", pytest.approx(z)),
    ]
    assert found.token_losses.mean == pytest.approx((a + z) / 2)
    assert found.token_losses.bits_per_byte == pytest.approx((a + z) / 2 / math.log(2))
    assert found.token_losses.remark is None
    assert (found.attention, found.remarks) == (None, ("attention is not known",))
    assert found.heads is not None and (found.heads.importance, found.heads.tokens) == (((1.0, None),), 2)
    assert model.read == [BEGIN, "a", "z"]


def test_a_long_text_among_others(tmp_path: Path) -> None:
    model = Model()
    text = "abc é。" * 300
    found = measure_on_text(model, written(tmp_path, text, "x", "yy" * 5000))
    shown = found.token_losses
    assert len(shown.tokens) == ROW_TOKENS - 1
    assert text.startswith("".join(token.text for token in shown.tokens))
    size = len(text.encode())
    assert shown.remark == f"of {size:,} tokens the first {ROW_TOKENS - 1} are shown; of 3 documents the first"
    assert shown.bits_per_byte == pytest.approx(shown.mean / math.log(2))  # a token is a byte here
    assert len(model.rows) == ROWS and {len(row) for row in model.rows[:5]} == {ROW_TOKENS}
    assert all(row[0] == model.begin for row in model.rows)
    short = Model(positions=7)
    assert len(measure_on_text(short, written(tmp_path, text)).token_losses.tokens) == 6
    assert {len(row) for row in short.rows} == {7}


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gives token 3 of the text a loss of nan: its weights are of no use"):
        measure_on_text(Model(), written(tmp_path, "ab!"))
    with pytest.raises(UserError, match="holds no text"):
        measure_on_text(Model(), written(tmp_path, ""))
    with pytest.raises(UserError, match="does not exist"):
        measure_on_text(Model(), str(tmp_path / "nowhere"))


def test_pieces_of_characters() -> None:
    """The token that ends a character has it, wherever the tokens before it begin."""
    assert pieces("é。a", [0, 1, 2, 3, 4, 5]) == ["", "é", "", "", "。", "a"]
    assert pieces("é。a", [0, 0, 2, 2, 2, 5]) == ["", "é", "", "", "。", "a"]
    assert pieces(" a b", [-1, 1, 3]) == [" ", "a ", "b"]
    assert pieces("ab", [0]) == ["ab"]
    assert "".join(pieces("春眠🚀x", [0, 1, 3, 7, 10])) == "春眠🚀x"
