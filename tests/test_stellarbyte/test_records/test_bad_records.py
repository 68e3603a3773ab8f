import pytest

from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import BadRecords, RecordError, check_text


def test_bad_records_fail_with_the_fix() -> None:
    with pytest.raises(UserError, match=r"x:1 is bad: mend it, or set on_bad_record to skip$"):
        BadRecords("fail").add("x:1 is bad")


def test_bad_records_are_counted_and_the_first_few_kept() -> None:
    bad = BadRecords("skip")
    assert bad.summary() is None
    bad.add("x:1 is bad")
    assert bad.summary() == "Skipped 1 bad record: x:1 is bad"
    for line in range(2, 9):
        bad.add(f"x:{line} is bad")
    assert bad.count == 8
    assert bad.summary() == "Skipped 8 bad records: " + "; ".join(f"x:{n} is bad" for n in range(1, 6)) + "; …"


def test_empty_records_are_told_and_not_bad() -> None:
    bad = BadRecords("fail")
    bad.empty = 1
    assert bad.summary() == "1 record holds no text and was left out"
    bad.empty, bad.count, bad.first = 2, 1, ("x:1 is bad",)
    assert bad.summary() == "Skipped 1 bad record: x:1 is bad; 2 records hold no text and were left out"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("a\ud83d", "a lone surrogate"), ("a\udcff", "a byte that is not UTF-8"), ("a\0b", "a NUL character")],
)
def test_what_is_no_text_is_named(text: str, complaint: str) -> None:
    with pytest.raises(RecordError, match=f"^x:1 holds {complaint}"):
        check_text(text, "x:1")
