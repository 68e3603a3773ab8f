"""Vectors: what codes find is exact, few vectors are whitened as many are, and NumPy has its threads back."""

from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from stellarbyte.memory import Memory, blas_threads, embedding
from stellarbyte.memory.faiss_matrix import FaissMatrix
from stellarbyte.memory.half_vectors import from_binary
from stellarbyte.memory.matrix import Matrix
from stellarbyte.memory.whitening import fit_whitening, rows_to_fit
from test_stellarbyte.test_memory.embedders import Letters


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def check(matrix: Matrix, ids: np.ndarray, vectors: np.ndarray, queries: np.ndarray, limit: int) -> None:
    for query, found in zip(queries, matrix.search(queries.astype(np.float32), limit), strict=True):
        products = vectors @ query
        best = np.lexsort((ids, -products))[:limit]
        assert [value for _, value in found] == pytest.approx(products[best], abs=2e-6)
        assert {number for number, _ in found} <= set(ids.tolist())
        assert not products.any() or {number for number, _ in found} == set(ids[best].tolist())


def test_codes_find_exactly_what_all_products_find() -> None:
    pytest.importorskip("faiss")
    random = np.random.default_rng(1)
    vectors = unit(random.standard_normal((6_000, 48)) * np.exp(-np.arange(48) / 20))
    vectors[:900] = unit(vectors[0] + 0.004 * random.standard_normal((900, 48)))  # more alike than codes can tell
    matrix = FaissMatrix(48, 100)
    for first in range(0, 6_000, 1_500):
        matrix.add(range(first, first + 1_500), vectors[first : first + 1_500])
    matrix.remove([*range(100, 300), 70_000])
    matrix.add([150, 6_000], vectors[[150, 9]])
    ids = np.array([*range(100), 150, *range(300, 6_001)])
    there = np.concatenate([vectors, vectors[9:10]])[ids]
    assert len(matrix) == len(ids) and matrix._index.ntotal == 6_000  # removed ones' rows are used again
    queries = np.concatenate([unit(random.standard_normal((10, 48))), vectors[:5], np.zeros((1, 48))])
    check(matrix, ids, there, queries, 5)


def test_what_codes_cannot_say_is_found_all_the_same() -> None:
    """A number is larger than those that the codes were made for, and many others are nearer by their codes."""
    pytest.importorskip("faiss")
    random = np.random.default_rng(3)
    others = unit(random.standard_normal((300, 48)) * (np.arange(48) > 0))
    query = unit(np.eye(48)[:1] * 0.78 + 0.63 * others[:1])
    shares = np.linspace(0.3, 0.7, 300)[:, None]
    near = unit(shares * query + np.sqrt(1 - shares**2) * others)
    vectors = np.concatenate([near, unit(random.standard_normal((6_000, 48))), np.eye(48, dtype=np.float32)[:1]])
    matrix = FaissMatrix(48, 7_000)
    matrix.add(range(6_300), vectors[:6_300])
    matrix.add([6_300], vectors[6_300:])
    assert matrix._coarse == {6_300}
    check(matrix, np.arange(6_301), vectors, query, 2)


@pytest.mark.parametrize("rows", [1, 7, 23, 24, 400])
def test_a_whitening_is_the_inverse_fourth_root_of_the_shrunk_covariance(rows: int) -> None:
    """Of fewer vectors than numbers it is made of the vectors' products, and must be the same."""
    random = np.random.default_rng(2)
    sample = random.standard_normal((rows, 24)) @ (random.standard_normal((24, 24)) * np.exp(-np.arange(24) / 6)) + 2
    mean = sample.mean(axis=0) * rows / (rows + 8)
    covariance = (sample - mean).T @ (sample - mean) / rows
    trace, square = np.trace(covariance), np.sum(covariance**2)
    share = min(1.0, ((1 - 2 / 24) * square + trace**2) / ((rows + 1 - 2 / 24) * (square - trace**2 / 24)))
    values, axes = np.linalg.eigh((1 - share) * covariance + share * trace / 24 * np.eye(24))
    queries = random.standard_normal((5, 24))
    expected = (queries - mean) @ (axes * np.maximum(values, values[-1] * 1e-6) ** -0.25) @ axes.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    fitted = fit_whitening(sample, rows, directions=True)
    np.testing.assert_allclose(fitted(queries), expected, atol=2e-5)
    others = random.standard_normal((9, 24))
    lengths = np.linalg.norm((others - mean) @ (axes * np.maximum(values, values[-1] * 1e-6) ** -0.25) @ axes.T, axis=1)
    products = (others - mean) @ fitted.direction(queries[0]) / lengths
    np.testing.assert_allclose(
        products / products[0], (fitted(others) @ expected[0]) / (fitted(others[:1]) @ expected[0]), rtol=2e-3
    )
    assert rows_to_fit(256) == 16_384 and rows_to_fit(8_192) == 1_024


def test_numpy_has_its_threads_back_after_the_last_who_took_them() -> None:
    libraries = blas_threads._libraries().select(user_api="blas")  # others may have been loaded since

    def threads() -> set[int]:
        return {library["num_threads"] for library in libraries.info()}

    with threadpool_limits(2, user_api="blas"):
        before = threads()
        with blas_threads.one_thread():
            with pytest.raises(ZeroDivisionError), blas_threads.one_thread():
                raise ZeroDivisionError
            assert threads() == {1}
        assert threads() == before


def test_halves_come_back_from_pgvector_s_form() -> None:
    vectors = np.array([[1.5, -2, 0.25], [65504, 0, -1e-7]], np.float16)
    sent = [b"\x00\x03\x00\x00" + vector.astype(">f2").tobytes() for vector in vectors]
    np.testing.assert_array_equal(from_binary(sent, 3), vectors)
    assert from_binary([], 3).shape == (0, 3)


def test_all_missing_vectors_are_made_a_batch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_BATCH", 3)
    with Memory(tmp_path / "m.db") as plain, Memory(tmp_path / "m.db", embedder=Letters()) as memory:
        for number in range(8):
            plain.add(f"The lamp in hall {number} shines", kind="passage")
        assert len(memory.search("lamp", 20, how="vectors", floor=0)) == 8
        plain.update(2, "The violin is in the attic")
        for number in range(8, 12):
            plain.add(f"The lamp in hall {number} shines", kind="passage")
        assert len(memory.search("lamp", 20, how="vectors", floor=0)) == 12
