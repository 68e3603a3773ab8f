"""Scores join words and vectors, large stores are searched by their rare words first, and missing vectors are made."""

from pathlib import Path

import numpy as np
import pytest

from stellarbyte.memory import Memory, searching
from stellarbyte.memory.matrix import FaissMatrix, Matrix, NumpyMatrix
from stellarbyte.memory.scoring import score
from stellarbyte.memory.word_index import Trust
from tests.test_stellarbyte.test_memory.embedders import Letters


def test_a_score_rises_with_both_parts_and_trusts_vectors_as_far_as_they_deserve() -> None:
    good, useless = Trust(1.0, 0.2, 0.05), Trust(0.0, 0.2, 0.05)
    assert score(0.3, None, good) == 0.3
    assert score(0.3, 0.0, good) < 0.3 < score(0.3, 0.4, good) < score(0.5, 0.4, good) <= 1
    assert score(0.3, 0.0, useless) == 0.3 == score(0.3, 0.4, useless)
    assert score(0.0, 0.3, good) < 0.2 < score(0.0, 0.5, good)


@pytest.mark.parametrize("kind", [NumpyMatrix, FaissMatrix])
def test_a_matrix_finds_what_is_there_and_forgets_what_is_not(kind: type[NumpyMatrix] | type[FaissMatrix]) -> None:
    if kind is FaissMatrix:
        pytest.importorskip("faiss")
    matrix: Matrix = NumpyMatrix(4, 0) if kind is NumpyMatrix else FaissMatrix(4)
    vectors = np.eye(4, dtype=np.float32)
    matrix.add([7, 8, 9, 10], vectors)
    matrix.remove([9, 11])
    matrix.remove([9])
    assert len(matrix) == 3
    first, second = matrix.search(np.array([[0.1, 0.9, 0, 0], [0, 0, 1, 0.5]], np.float32), 2)
    assert [number for number, _ in first] == [8, 7] and second[0] == (10, 0.5)
    assert matrix.products(np.array([1, 2, 3, 4], np.float32), [10, 9, 8]) == {10: 4.0, 8: 2.0}


def test_frequent_words_order_what_rare_ones_have_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Memory(tmp_path / "m.db") as memory:
        for number in range(30):
            memory.add(f"The lamp in room {number} shines {'blue' if number % 7 else 'red'}", kind="passage")
        memory.add("The harp in room 3 is red", kind="passage")
        query = "Which lamp or harp in room 3 shines red?"
        whole = memory.search(query, 5, floor=0)
        monkeypatch.setattr(searching, "_MOST_POSTINGS", 2)
        assert [(one.entry.id, round(one.score, 9)) for one in memory.search(query, 2, floor=0)] == [
            (one.entry.id, round(one.score, 9)) for one in whole[:2]
        ]


def test_vectors_that_others_have_left_out_are_made(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with Memory(path, embedder=Letters()) as memory, Memory(path) as plain:
        memory.add("My dog is called Rex")
        memory.search("dog")
        number = plain.add("The harbour of Bergen is full of ships", kind="passage").entry
        assert number is not None
        assert memory.search("harbour ships", how="vectors", floor=0)[0].entry.id == number
        plain.update(number, "The violin is in the attic")
        found = memory.search("violin in the attic", how="vectors", floor=0)
        assert found[0].entry.text == "The violin is in the attic"
