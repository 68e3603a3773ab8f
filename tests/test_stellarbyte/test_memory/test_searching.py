"""Scores join words and vectors, large stores are searched by their rare words first, and missing vectors are made."""

from pathlib import Path

import numpy as np
import pytest

from stellarbyte.memory import Memory, searching
from stellarbyte.memory.faiss_matrix import FaissMatrix
from stellarbyte.memory.matrix import Matrix, NumpyMatrix
from stellarbyte.memory.scoring import score
from stellarbyte.memory.word_index import Trust
from tests.test_stellarbyte.test_memory.embedders import Letters


def test_a_score_rises_with_both_parts_and_trusts_vectors_as_far_as_they_deserve() -> None:
    good, useless = Trust(1.0, 0.2, 0.05), Trust(0.0, 0.2, 0.05)
    assert score(0.3, None, good) == 0.3
    assert score(0.3, 0.0, good) < 0.3 < score(0.3, 0.4, good) < score(0.5, 0.4, good) <= 1
    assert 0.3 - score(0.3, 0.2, good) > score(0.3, 0.3, good) - 0.3  # the usual one is at 0.2, and 0.25 says nothing
    assert score(0.3, 0.0, useless) == 0.3 == score(0.3, 0.4, useless)
    assert score(0.0, 0.3, good) < 0.2 < score(0.0, 0.51, good)


@pytest.mark.parametrize("kind", [NumpyMatrix, FaissMatrix])
def test_a_matrix_finds_what_is_there_and_forgets_what_is_not(kind: type[NumpyMatrix] | type[FaissMatrix]) -> None:
    if kind is FaissMatrix:
        pytest.importorskip("faiss")
    matrix: Matrix = NumpyMatrix(4, 0) if kind is NumpyMatrix else FaissMatrix(4, 0)
    vectors = np.eye(4, dtype=np.float32)
    matrix.add([7, 8, 9, 10], vectors)
    matrix.remove([9, 11])
    matrix.remove([9])
    assert len(matrix) == 3
    first, second = matrix.search(np.array([[0.1, 0.9, 0, 0], [0, 0, 1, 0.5]], np.float32), 2)
    assert [number for number, _ in first] == [8, 7] and second[0] == (10, 0.5)
    assert [number for number, _ in matrix.search(-np.ones((1, 4), np.float32), 3)[0]] == [7, 8, 10]


def test_frequent_words_order_what_rare_ones_have_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Memory(tmp_path / "m.db") as memory:
        for number in range(30):
            memory.add(f"The lamp in room {number} shines {'blue' if number % 7 else 'red'}", kind="passage")
        memory.add("The harp in room 3 is red", kind="passage")
        query = "Which lamp or harp in room 3 shines red?"
        whole = memory.search(query, 5, floor=0)
        monkeypatch.setattr(searching, "_MOST_POSTINGS", 2)
        monkeypatch.setattr(searching, "_CHEAP_POSTINGS", 2)
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


def test_a_large_store_is_searched_by_as_many_rare_words_as_it_takes() -> None:
    small = [(10, 0.5), (40, 0.4), (900, 0.06), (4_000, 0.04)]
    assert searching._looked_for(small) == 4
    large = [(10, 0.5), (40, 0.4), (9_000, 0.06), (40_000, 0.04)]
    assert searching._looked_for(large) == 2  # the others have a tenth of the query
    heavy = [(9_000, 0.3), (20_000, 0.3), (30_000, 0.2), (90_000, 0.2)]
    assert searching._looked_for(heavy) == 3 and searching._looked_for([(1_000_000, 0.5)] * 3) == 2


def test_how_many_entries_have_a_term_follows_every_change(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db") as memory, Memory(tmp_path / "m.db", user="ann") as ann:
        for text in ("The red lamp shines", "The red harp sounds", "A lamp of brass and another lamp"):
            memory.add(text, kind="passage")
        ann.add("A red lamp", kind="passage")

        def frequencies() -> dict[str, int]:
            return memory._tables.words.frequencies("", ["red", "lamp", "harp", "violin"])

        assert frequencies() == {"red": 2, "lamp": 2, "harp": 1}
        memory.update(2, "The violin sounds")
        assert frequencies() == {"red": 1, "lamp": 2, "violin": 1}
        memory.delete([1])
        memory.export(tmp_path / "o.jsonl")
        memory.load(tmp_path / "o.jsonl")
        assert frequencies() == {"lamp": 1, "violin": 1} and not memory.audit().ghosts
        ann.load(tmp_path / "o.jsonl")
        assert ann._tables.words.frequencies("ann", ["lamp", "red"]) == {"lamp": 2, "red": 1}
        memory.forget()
        assert frequencies() == {} and not memory.audit().ghosts
        ann._store.connection.run("UPDATE terms SET entries = 9 WHERE term = 'red'")
        assert memory.audit().ghosts == {"counts of terms": 1}


def test_bm25_is_the_one_of_robertson_and_zaragoza(tmp_path: Path) -> None:
    texts = ["lamp lamp brass", "lamp of glass and copper and iron", "harp and lamp", "harp harp harp"]
    with Memory(tmp_path / "m.db") as memory:
        for text in texts:
            memory.add(text, kind="passage")
        words = memory._tables.words
        entries, length = words.totals("")
        mean = length / entries
        lengths = dict(zip((1, 2, 3, 4), (3, 4, 2, 3), strict=True))

        def factor(number: int, count: int) -> float:
            return count * 2.2 / (count + 1.2 * (0.25 + 0.75 * lengths[number] / mean))

        expected = {
            1: 2 * factor(1, 2),
            2: 2 * factor(2, 1),
            3: 2 * factor(3, 1) + 5 * factor(3, 1),
            4: 5 * factor(4, 3),
        }
        asked = {"lamp": (2.0, 0.5), "harp": (5.0, 0.25)}
        ranked = words.ranked("", asked, mean, 3)
        assert [number for number, _, _ in ranked] == sorted(expected, key=lambda number: -expected[number])[:3]
        found = {number: (score, share) for number, score, share in words.scores("", asked, mean, [1, 3, 4, 9])}
        shares = {1: 0.5, 3: 0.75, 4: 0.25}
        assert found == {number: (pytest.approx(expected[number]), share) for number, share in shares.items()}
        assert {number: score for number, score, _ in ranked} == pytest.approx(
            {number: expected[number] for number, _, _ in ranked}
        )


def test_pairs_across_words_that_no_entry_has_count_less(tmp_path: Path) -> None:
    with Memory(tmp_path / "m.db") as memory:
        memory.add("我的朋友姚远在博物馆工作", kind="passage")
        memory.add("My friend Anna works at a museum", kind="passage")
        (found,) = memory.search("姚远在哪家单位", floor=0)  # 家单 and 哪家 are no words
        one, other = memory.search("Anna ab cd ef", floor=0)[0], memory.search("Anna zzz yyy xxx", floor=0)[0]
        assert one.score == other.score  # two letters of a spaced script are a word
        assert found.score > 0.28  # 0.27 if they counted as words do
