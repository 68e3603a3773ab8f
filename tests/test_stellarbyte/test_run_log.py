"""A run's log holds what was said, by level and process, and never harms the run."""

import io
import logging
import re
import threading
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from stellarbyte.display import Display
from stellarbyte.errors import UserError
from stellarbyte.log_settings import LogSettings
from stellarbyte.run_log import RunLog


def quiet_display(output: io.StringIO | None = None) -> Display:
    return Display(console=Console(file=output or io.StringIO(), width=100, highlight=False, markup=False))


def written(path: Path) -> list[str]:
    """The lines without their times, and without the first, which names the process."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d \w+ \d+: ", line) for line in lines)
    assert re.search(r" info \d: process \d+ on \S+ begins$", lines[0])
    return [line.partition(" ")[2] for line in lines[1:]]


def test_what_is_said_is_written_once(tmp_path: Path) -> None:
    output = io.StringIO()
    display = quiet_display(output)
    with RunLog(tmp_path / "run", display, LogSettings()):
        display.say("a line\nand another")
        display.say("warning: something is odd")
        display.update(1, 2, ["loss 1.0000"], None)
    lines = written(tmp_path / "run" / "log.txt")
    assert lines == ["info 0: a line", "info 0: and another", "warning 0: something is odd"]
    assert output.getvalue().splitlines()[:3] == ["a line", "and another", "warning: something is odd"]
    display.say("after it")
    assert "after it" not in (tmp_path / "run" / "log.txt").read_text()


def test_a_run_that_goes_on_adds_to_it(tmp_path: Path) -> None:
    for word in ("one", "two"):
        display = quiet_display()
        with RunLog(tmp_path, display, LogSettings()):
            display.say(word)
    assert [line.split(": ")[1] for line in written(tmp_path / "log.txt")][::2] == ["one", "two"]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["info 0: a line", "debug 0: step 1/2  ETA -:--:--", "warning 0: odd"]),
        ("warning", ["warning 0: odd"]),
        ("none", None),
    ],
)
def test_levels_of_the_file(level: str, expected: list[str] | None, tmp_path: Path) -> None:
    display = quiet_display()
    with RunLog(tmp_path, display, LogSettings(file_level=level)):
        display.say("a line")
        display.update(1, 2, [], None)
        display.say("warning: odd")
    assert (written(tmp_path / "log.txt") if (tmp_path / "log.txt").exists() else None) == expected


def test_other_processes_write_files_of_their_own_if_asked(tmp_path: Path) -> None:
    for index, settings in ((1, LogSettings()), (2, LogSettings(processes=(0, 2))), (3, LogSettings(processes=None))):
        display = quiet_display()
        with RunLog(tmp_path, display, settings, index):
            display.say("here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log-2.txt", "log-3.txt"]
    assert written(tmp_path / "log-2.txt") == ["info 2: here"]


def test_libraries_warnings_are_written_and_shown_as_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shown: list[str] = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(warnings, "showwarning", lambda message, *_, **__: shown.append(str(message)))
        warnings.simplefilter("always")
        before = (list(logging.root.handlers), warnings.showwarning)
        with RunLog(tmp_path, quiet_display(), LogSettings()):
            logging.getLogger("alibrary").warning("%d things", 3)
            warnings.warn("old", DeprecationWarning, stacklevel=1)
            thread = threading.Thread(target=logging.getLogger("alibrary").error, args=("from a thread",))
            thread.start()
            thread.join()
        assert (logging.root.handlers, warnings.showwarning) == before
    assert shown == ["old"] and caplog.messages == ["3 things", "from a thread"]
    first, warned, last = written(tmp_path / "log.txt")
    assert first == "warning 0: alibrary: 3 things" and last == "error 0: alibrary: from a thread"
    assert re.fullmatch(r"warning 0: .*test_run_log.py:\d+: DeprecationWarning: old", warned)


@pytest.mark.parametrize("error", [UserError("x is y: do z"), RuntimeError("device lost")])
def test_how_it_ended(error: Exception, tmp_path: Path) -> None:
    def run() -> None:
        display = quiet_display()
        with RunLog(tmp_path, display, LogSettings()):
            display.say("begun")
            raise error

    with pytest.raises(type(error)):
        run()
    _, *lines = written(tmp_path / "log.txt")
    if isinstance(error, UserError):
        assert lines == ["error 0: ended: x is y: do z"]
    else:
        assert lines[0] == "error 0: Traceback (most recent call last):"
        assert lines[-1] == "error 0: RuntimeError: device lost"


def test_a_mistake_before_anything_was_said_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError), RunLog(tmp_path / "run", quiet_display(), LogSettings()):
        raise UserError("no")
    assert not (tmp_path / "run").exists()


def test_a_log_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "log.txt").mkdir()
    output = io.StringIO()
    display = quiet_display(output)
    with RunLog(tmp_path, display, LogSettings()):
        display.say("one")
        display.say("two")
    said = output.getvalue().splitlines()
    assert [line for line in said if line in ("one", "two")] == ["one", "two"]
    assert sum("log.txt cannot be written and ends here: Is a directory" in line for line in said) == 1
