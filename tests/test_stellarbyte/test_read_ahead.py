"""Values come in their order, read ahead within the bound, and an error comes where its values would."""

import functools
import threading
import time

import pytest

from stellarbyte.read_ahead import read_ahead


def test_the_order_is_that_of_the_names() -> None:
    def reader(number: int):
        return lambda: (time.sleep(0.002 * (number % 3)), number)[1]

    assert list(read_ahead((n, 1, reader(n)) for n in range(20))) == [(n, n) for n in range(20)]
    assert list(read_ahead(())) == []


@pytest.mark.parametrize(("most", "expected"), [(30, 3), (29, 2), (1, 1)])
def test_no_more_is_read_than_fits(most: int, expected: int) -> None:
    began, begins = [], threading.Semaphore(0)

    def reader(number: int):
        def read() -> int:
            began.append(number)
            begins.release()
            return number

        return read

    values = read_ahead(((n, 10, reader(n)) for n in range(6)), most)
    assert next(values) == (0, 0)
    for _ in range(expected):
        assert begins.acquire(timeout=5)
    time.sleep(0.05)
    assert sorted(began) == list(range(expected)), "the first counts as long as it is in use"
    values.close()
    assert len(began) == expected


def test_what_takes_no_memory_once_it_is_read_does_not_count() -> None:
    began: list[int] = []
    values = read_ahead(((n, 10, functools.partial(began.append, n)) for n in range(20)), 10, most_done=50)
    assert next(values) == (0, None)
    for expected in (1, 2, 3):
        time.sleep(0.05)
        assert next(values)[0] == expected
    time.sleep(0.05)
    assert 4 < len(began) <= 9, "more than one is there, and no more than are to be"
    values.close()


def test_an_error_comes_in_its_turn() -> None:
    def fail() -> int:
        raise ValueError("broken")

    values = read_ahead([("a", 1, lambda: 1), ("b", 1, fail), ("c", 1, lambda: 3)])
    assert next(values) == ("a", 1)
    with pytest.raises(ValueError, match="broken"):
        next(values)
