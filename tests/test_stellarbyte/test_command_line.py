"""However a program ends, it does so with one sentence and the right code, and a signal is never lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stellarbyte import door
from stellarbyte.command_line import Parser, prepared_by, report
from stellarbyte.errors import UserError
from stellarbyte.interrupt import Interrupted

_PROGRAM = """
import gc, sys, time
from stellarbyte import door
from stellarbyte.command_line import report, run_program
from stellarbyte.interrupt import Interrupt, exit_code, hold_signals, interruptible

def ready():
    print("ready", flush=True)
    time.sleep(60)

def swallow(phase, info):
    gc.callbacks.clear()
    ready()

def run():
    {body}
    return 0

run_program("program", run)
"""

SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "interrupted by SIGTERM")]
SIGNALS += [(signal.SIGHUP, 129, "interrupted by SIGHUP"), (signal.SIGUSR1, 138, "interrupted by SIGUSR1")]

# As a compiler or a device may keep it: the main thread never comes back to Python, where handlers run.
STUCK = """
    import ctypes, threading
    with Interrupt("program") as interrupt:
        {first}
        mutex, library = ctypes.create_string_buffer(128), ctypes.CDLL(None)
        library.pthread_mutex_lock(mutex)
        threading.Timer(0.2, print, ("ready",), dict(flush=True)).start()  # by then it is there
        library.pthread_mutex_lock(mutex)
"""


def program(body: str, **options: Any) -> subprocess.Popen[str]:
    """`body` as a program of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-c", _PROGRAM.format(body=body)], text=True, **pipes)


def signalled(body: str, *numbers: int) -> tuple[int, str]:
    """(exit code, stderr) of the program that gets one of the signals each time it says that it is ready."""
    with program(body) as process:
        assert process.stdout is not None
        for number in numbers:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_a_terminal_of_few_characters_ends_nothing() -> None:
    body = r"print('\u00e9 \u2026 \udcff'); print('\u661f', file=sys.stderr)"
    with program(body, env={**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "\\xe9 \\u2026 \\udcff\n", "\\u661f\n")


@pytest.mark.parametrize(("number", "code", "words"), SIGNALS)
def test_a_signal_ends_it_with_a_line(number: int, code: int, words: str) -> None:
    assert signalled("ready()", number) == (code, f"program: {words}\n")


@pytest.mark.parametrize("body", ["gc.callbacks.append(swallow); gc.collect(); ready()", "import select; ready()"])
def test_nothing_swallows_a_signal(body: str) -> None:
    assert signalled(body, signal.SIGINT) == (130, "program: interrupted\n")


def test_work_that_tidies_up_does_so_even_if_a_callback_has_swallowed_the_exception() -> None:
    body = """
    try:
        with interruptible():
            gc.callbacks.append(swallow)
            gc.collect()
            ready()
    except KeyboardInterrupt as error:
        print("tidied up", file=sys.stderr)
        return report("program", error)
    """
    assert signalled(body, signal.SIGTERM) == (143, "tidied up\nprogram: interrupted by SIGTERM\n")


def test_what_another_error_makes_of_a_signal_is_still_an_interruption() -> None:
    body = """
    with interruptible():
        try:
            ready()
        except KeyboardInterrupt:
            raise ImportError("numpy cannot be imported") from None
    """
    assert signalled(body, signal.SIGINT) == (130, "program: interrupted\n")


def test_a_second_signal_leaves_at_once() -> None:
    body = """
    with Interrupt("program") as interrupt:
        print("ready", flush=True)
        while not interrupt.requested:
            time.sleep(0.01)
        ready()
    """
    code, errors = signalled(body, signal.SIGTERM, signal.SIGINT)
    assert code == 130
    asked, left = errors.splitlines()
    assert asked == "program: SIGTERM: finishing this step, then saving; once more to stop at once"
    assert left == "program: interrupted"


def test_signals_are_answered_while_the_main_thread_is_stuck_and_the_second_leaves_at_once() -> None:
    with program(STUCK.format(first="pass")) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stderr.readline() == (
            "program: SIGUSR1: finishing this step, then saving; once more to stop at once\n"
        )
        process.send_signal(signal.SIGHUP)  # more of these only ask
        process.send_signal(signal.SIGUSR1)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (138, "program: interrupted by SIGUSR1\n")


def test_who_is_not_done_in_time_is_ended_with_one_line() -> None:
    first = "interrupt.give_up_after(0.05, lambda: 'not saved; step 4 stands')"
    code, errors = signalled(STUCK.format(first=first), signal.SIGTERM)
    assert code == 143
    assert errors.splitlines()[1:] == ["program: interrupted by SIGTERM: not saved; step 4 stands"]


def test_who_is_done_in_time_is_not_ended() -> None:
    body = """
    with Interrupt("program") as interrupt:
        interrupt.give_up_after(0.2, lambda: "not saved")
        print("ready", flush=True)
        while not interrupt.requested:
            time.sleep(0.01)
    time.sleep(0.4)
    return exit_code(interrupt.number)
    """
    code, errors = signalled(body, signal.SIGTERM)
    assert (code, errors.count("\n")) == (143, 1)


def test_a_terminal_that_closes_asks_however_often_it_does() -> None:
    body = """
    with Interrupt("program") as interrupt:
        print("ready", flush=True)
        while not interrupt.requested:
            time.sleep(0.01)
        import os, signal
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.1)
        return exit_code(interrupt.number)
    """
    assert signalled(body, signal.SIGHUP)[0] == 129


def test_who_starts_it_by_nohup_wants_it_to_outlive_the_terminal() -> None:
    body = "import os, signal; os.kill(os.getpid(), signal.SIGHUP); print('alive')"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        out, errors = program(body).communicate(timeout=60)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (out, errors) == ("alive\n", "")


def test_a_child_that_was_forked_does_not_answer_for_its_parent() -> None:
    body = """
    import os, signal, warnings
    warnings.simplefilter("ignore")  # a process of several threads is forked on purpose
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"forked")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 6)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    time.sleep(0.1)
    print(os.WTERMSIG(status))
    """
    process = program(body)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "15\n", "")


@pytest.mark.parametrize(
    ("body", "code"),
    [("print('done')", 0), ("sys.exit()", 0), ("sys.exit(3)", 3), ("raise SystemExit('no')", 70), ("return 5", 5)],
)
def test_codes(body: str, code: int) -> None:
    process = program(body)
    process.communicate(timeout=60)
    assert process.returncode == code


def test_a_bug_keeps_its_traceback() -> None:
    process = program("raise ZeroDivisionError")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 70
    assert "ZeroDivisionError" in errors.splitlines()[-1]


def test_a_module_that_cannot_be_imported_is_no_verdict() -> None:
    """`stellarbyte convert`, say, of an installation that is broken."""
    code = "import sys, stellarbyte.door as door; sys.modules['convert.cli'] = None; door.program()"
    done = subprocess.run(
        [sys.executable, "-c", code, "convert", "verify"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.splitlines()[-1][:19]) == (70, "ModuleNotFoundError")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("lines", [1, 10_000])
def test_a_full_disk_behind_stdout_gets_a_sentence(unbuffered: str, lines: int) -> None:
    with Path("/dev/full").open("w") as full:
        process = program(
            f"[print('line') for _ in range({lines})]",
            stdout=full,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (
        2,
        "program: error: the output cannot be written: No space left on device\n",
    )


def test_a_reader_that_has_gone_is_no_error() -> None:
    process = program("[print('line') for _ in range(10_000)]")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141


def test_a_reader_that_has_gone_changes_no_other_code() -> None:
    """A terminal that is closed ends a run by SIGHUP, and takes no last line."""
    process = program("print('line'); return 129", env=os.environ | {"PYTHONUNBUFFERED": ""})
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 129


def test_a_stdout_that_is_closed_gets_a_sentence_and_no_file_in_its_place() -> None:
    command = f'exec "{sys.executable}" -c "$0" >&-'
    body = "print('line')"
    done = subprocess.run(
        ["sh", "-c", command, _PROGRAM.format(body=body)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (
        2,
        "program: error: the output cannot be written: Bad file descriptor\n",
    )


def test_what_is_said_of_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert report("program", UserError("mend it")) == 2
    assert report("program", KeyboardInterrupt()) == 130
    assert report("program", Interrupted(signal.SIGTERM)) == 143
    assert report("program", Interrupted(signal.SIGINT, "step 4 stands")) == 130
    said = "program: error: mend it\nprogram: interrupted\nprogram: interrupted by SIGTERM\n"
    said += "program: interrupted: step 4 stands\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_the_config_comes_before_what_overrides_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main([command, "--training.max_steps", "3", "c.yaml"]) == 2
    assert "3 is no config file: write c.yaml first, and what overrides it after that" in capsys.readouterr().err


FORGED = "runs/a\nprogram: all is well\x1b[2J\u202e\udcff"


def test_names_can_neither_forge_a_line_nor_command_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = r"program: error: runs/a\nprogram: all is well\x1b[2J\u202e\udcff is missing" + "\n"
    assert report("program", UserError(f"{FORGED} is missing")) == 2
    assert capsys.readouterr().err == sentence
    with pytest.raises(SystemExit) as stop:
        Parser(prog="program command").error(f"{FORGED} is missing")
    assert stop.value.code == 2 and capsys.readouterr().err == sentence


def test_an_empty_path_is_not_this_folder(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="program")
    parser.add_subparsers().add_parser("command").add_argument("--output", type=Path)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["command", "--output", ""])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("program: error: argument --output: '' names no file and no folder")
    assert parser.parse_args(["command", "--output", "."]).output == Path()


def test_a_long_name_leaves_the_sentence_readable(capsys: pytest.CaptureFixture[str]) -> None:
    report("program", UserError(f"/first{'x' * 100_000}/last.yaml cannot be read"))
    said = capsys.readouterr().err
    assert said.startswith("program: error: /firstxxx") and said.endswith("xxx/last.yaml cannot be read\n")
    assert len(said) < 500
    report("program", UserError("春眠 " * 100_000))
    assert len(capsys.readouterr().err) < 5000


def test_a_file_that_the_system_refuses_is_no_bug(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, why in ((str(tmp_path / ("n" * 300)), "File name too long"), (os.fsencode(tmp_path), "Is a directory")):
        with pytest.raises(OSError, match=why) as raised:
            open(name).close()  # noqa: PTH123 - bytes too
        assert report("program", raised.value) == 2
        assert capsys.readouterr().err.endswith(f" cannot be used: {why}\n")


def test_links_in_a_circle_are_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    of_python_3_12 = RuntimeError("Symlink loop from '/some/where'")
    assert report("program", of_python_3_12) == 2
    assert capsys.readouterr().err == "program: error: /some/where cannot be used: its links lead back to themselves\n"


class JaxRuntimeError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1580747460 bytes.\nmore"), "1580747460 bytes."),
        (RuntimeError("[enforce fail at alloc.cpp] DefaultCPUAllocator: not enough memory: you tried"), "you tried"),
        (MemoryError(), "Python has none left"),
    ],
)
def test_memory_that_runs_out_is_one_sentence(error: Exception, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert report("program", error) == 2
    said = capsys.readouterr().err
    assert said.startswith("program: error: there is not enough memory (") and said.count("\n") == 1
    assert f"{words}): take fewer rows" in said


def test_what_prepares_a_command_is_done_before_each_call() -> None:
    done: list[str] = []

    @prepared_by(lambda: done.append("first"), lambda: done.append("second"))
    def command(word: str, *, last: str) -> str:
        """Says both."""
        done.append(word)
        return word + last

    assert [command("a", last="!"), command("b", last="?")] == ["a!", "b?"]
    assert done == ["first", "second", "a", "first", "second", "b"]
    assert command.__doc__ == "Says both."
