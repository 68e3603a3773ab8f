"""A line that is JSON is not yet a record."""

import pytest

from stellarbyte.metrics_file import record_of


def test_a_record() -> None:
    assert record_of('{"step": 3, "loss": 1.5}\n') == {"step": 3, "loss": 1.5}


@pytest.mark.parametrize(
    "line",
    ["", "5", "[1]", "null", '{"loss": 1.0}', '{"step": "x"}', '{"step": true}', '{"step": 1, "lo', "[" * 100_000],
)
def test_no_record(line: str) -> None:
    assert record_of(line) is None
