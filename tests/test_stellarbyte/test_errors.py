"""What users gave is shown in one line, and never more of it than a sentence can hold."""

import pytest

from stellarbyte.errors import in_full, shown, shown_path


@pytest.mark.parametrize(
    ("value", "kind", "full"),
    [
        (None, "null", "None"),
        (True, "true", "True"),
        ("a\nb", r"'a\nb'", r"'a\nb'"),
        ([1, 2], "a list", "[1, 2]"),
        (("a",), "a list", "['a']"),
        ({"a": 1}, "a mapping", "{'a': 1}"),
        (list(range(99)), "a list", "a list"),
    ],
)
def test_values(value: object, kind: str, full: str) -> None:
    assert (shown(value), in_full(value)) == (kind, full)


@pytest.mark.parametrize("value", ["x" * 10**6, 10**200])
def test_what_is_long_is_cut(value: object) -> None:
    assert len(shown(value)) <= 80
    assert "…" in shown(value)
    assert in_full(value) == shown(value)


def test_what_python_does_not_write_out_is_described() -> None:
    assert shown(10**5000) == in_full(10**5000) == "an integer of about 5000 digits"


def test_any_name_can_be_printed_in_a_line() -> None:
    assert shown_path("data/静夜思 1.txt") == "data/静夜思 1.txt"
    assert shown_path("a\udcff\n\x1b[31m\ud83d") == r"a\xff\n\x1b[31m\ud83d"
