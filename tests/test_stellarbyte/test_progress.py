import pytest

from stellarbyte.progress import Lines, progress


def test_a_line_every_ten_seconds_tells_the_time_left() -> None:
    lines: list[str] = []
    seconds = iter([0, 4, 10, 12, 25, 4000])
    update = Lines("text read", "{}B".format, lines.append, lambda: float(next(seconds)))
    for done in (100, 150, 200, 250, 350, 400):  # 100 were done before
        update(done, 8100)
    assert lines == [
        "text read: 200B of 8100B, 13:10 left",
        "text read: 350B of 8100B, 12:55 left",
        "text read: 400B of 8100B, 28:31:07 left",
    ]


def test_what_has_no_end_tells_the_time_so_far() -> None:
    lines: list[str] = []
    seconds = iter([0, 11, 90])
    update = Lines("merges learnt", str, lines.append, lambda: float(next(seconds)))
    for _ in range(3):
        update(0, None)
    assert lines == ["merges learnt: 0:11 so far", "merges learnt: 1:30 so far"]


def test_a_short_command_says_nothing_outside_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("bytes", "B") as update:
        update(1, 2)
        update(2, 2)
    assert capsys.readouterr() == ("", "")
