"""A child answers, crashes, hangs or says nonsense, and its parent goes on."""

import os
import sys
import time

import pytest

from stellarbyte.environment.children import ask_python, run


def test_an_answer() -> None:
    answer = ask_python("import sys; print('noise'); print('[1, \"' + sys.argv[1] + '\"]')", os.environ, "two")
    assert answer.value == [1, "two"] and answer.error is None


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("import os; os.kill(os.getpid(), 11)", "it was ended by SIGSEGV"),
        ("raise SystemExit(3)", "it ended with code 3"),
        ("print('no JSON')", "it ended without an answer"),
        ("pass", "it ended without an answer"),
        ("import time; time.sleep(60)", "it has said nothing for 1 seconds"),
        ("raise ImportError('libx.so: wrong\\n  details\\n  more')", "ImportError: libx.so: wrong"),
    ],
)
def test_what_goes_wrong(code: str, error: str) -> None:
    answer = ask_python(code, os.environ, seconds=1)
    assert answer.value is None and answer.error == error


def test_a_command_that_is_not_there() -> None:
    assert run(["/no/such/command"], {}) == ("", "/no/such/command cannot be started: No such file or directory")


def test_a_child_that_speaks_may_take_longer() -> None:
    code = "import time\nfor n in range(6):\n    print(n, flush=True)\n    time.sleep(0.3)"
    heard: list[str] = []
    assert run([sys.executable, "-c", code], os.environ, 1.2, heard.append) == ("0\n1\n2\n3\n4\n5\n", None)
    assert len(heard) == 6


def test_what_a_child_has_started_ends_with_it() -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).wait()"
    began = time.monotonic()
    assert run([sys.executable, "-c", code], os.environ, 1)[1] == "it has said nothing for 1 seconds"
    assert time.monotonic() - began < 30
