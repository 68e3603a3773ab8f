"""How the program begins and ends: what it says of an error or a signal, and its exit code.

docs/exit_codes.md lists the codes.
"""

import argparse
import errno
import functools
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from stellarbyte.errors import UserError, one_line
from stellarbyte.interrupt import ending, exit_code, leave_at_once
from stellarbyte.places import Place, is_remote, place

# The exit code of a mistake that the user can mend.
USER_ERROR = 2
# That of a fault of ours, EX_SOFTWARE (sysexits.h): no verdict of a command has it.
FAULT = 70
# That of a program whose reader has gone (| head): what a shell makes of SIGPIPE.
READER_GONE = 141

_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes read like all our others: one sentence, no usage text. Its subparsers are of its kind."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.register("type", Path, _path)

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        self.exit(USER_ERROR, f"{self.prog.partition(' ')[0]}: error: {one_line(message)}\n")


def _path(word: str) -> Path:
    """The type of an option that names a file or a folder of this machine."""
    if is_remote(word):
        raise argparse.ArgumentTypeError(f"{word} is in a bucket: name a file or a folder of this machine")
    found = folder_or_bucket(word)
    assert isinstance(found, Path)
    return found


def folder_or_bucket(word: str) -> Place:
    """The type of an option that names a folder of this machine, or one in a bucket (gs://, s3://)."""
    if not word:  # as of a variable not set; Path would take it for this folder
        raise argparse.ArgumentTypeError("'' names no file and no folder: give a path, . for this folder")
    try:
        return place(word)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run_program(program: str, run: Callable[[], int]) -> NoReturn:
    """Runs a program in a process that is its own, to the end of the process, whose code is what `run` returns.

    From the first moment on a signal ends it with a line. At the end nothing is waited for that Python and its
    libraries still do: there a signal would be a traceback or a crash of the interpreter, and a thread that hangs would
    hold the process. What a command has to save is on disk before.
    """
    _open_standard_streams()
    _print_any_character()
    leave_at_once(program)
    try:
        code = run()
        if code == 0:  # another says more than that nobody reads it
            sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - this is where all end
        code = report(program, error)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or USER_ERROR
    os._exit(code)


def report(program: str, error: BaseException) -> int:
    """Says what went wrong, in a sentence if the user can do something about it; returns the exit code.

    A fault of ours keeps its traceback, for whoever reports it.
    """
    if isinstance(error, UserError):
        return _say(f"{program}: error: {one_line(str(error))}", USER_ERROR)
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "number", None)
        return _say(ending(program, number, getattr(error, "state", "")), exit_code(number))
    if isinstance(error, BrokenPipeError):  # the reader knows
        return READER_GONE
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):  # argparse's
        return error.code or 0
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes | os.PathLike):
        # A name that is too long, a folder that others lock, a disk that is gone: nothing that we got wrong.
        sentence = f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}"
        return _say(f"{program}: error: {one_line(sentence)}", USER_ERROR)
    # Path.resolve says so before Python 3.13.
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from "):
        path = str(error).removeprefix("Symlink loop from ").strip("'\"")
        return _say(f"{program}: error: {one_line(path)} cannot be used: its links lead back to themselves", USER_ERROR)
    # What has no name is what we print to.
    if isinstance(error, OSError) and error.errno in _WRITING:
        return _say(f"{program}: error: the output cannot be written: {error.strerror}", USER_ERROR)
    if _ran_out_of_memory(error):
        first = one_line(next(iter(str(error).splitlines()), ""))[:200]
        advice = "take fewer rows or tokens at once, or a smaller model"
        return _say(
            f"{program}: error: there is not enough memory ({first or 'Python has none left'}): {advice}", USER_ERROR
        )
    with suppress(OSError, ValueError):  # nobody is there to read it
        traceback.print_exception(error)
    return FAULT


def _ran_out_of_memory(error: BaseException) -> bool:
    """Whether it is Python's, JAX's or torch's way to say so; of the latter two only the words are known here."""
    words = ("RESOURCE_EXHAUSTED", "out of memory", "not enough memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


def _print_any_character() -> None:
    """From here on what standard output and error cannot show is escaped: a poor terminal must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


Given = ParamSpec("Given")
Result = TypeVar("Result")


def prepared_by(*steps: Callable[[], object]) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """A decorator of a wing's commands: before each call, the steps set what libraries read when they are imported."""

    def prepared(command: Callable[Given, Result]) -> Callable[Given, Result]:
        @functools.wraps(command)
        def run(*given: Given.args, **named: Given.kwargs) -> Result:
            for step in steps:
                step()
            return command(*given, **named)

        return run

    return prepared


def check_text(option: str, text: str) -> None:
    """Raises UserError where an argument holds bytes that are no UTF-8, which Python keeps as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{option} holds bytes that are not UTF-8: write it in UTF-8") from error


def check_config_first(config: Path, overrides: Sequence[str]) -> None:
    """Raises UserError where an override stands before the config file, whose place its value has taken then."""
    given = next((word for word in overrides if word.endswith((".yaml", ".yml"))), None)
    if given is not None and not config.exists():
        raise UserError(f"{config} is no config file: write {given} first, and what overrides it after that")


class StreamedAnswer:
    """Writes a prompt and its continuation to standard output; the prompt waits for the first piece of that.

    So an error never follows half an answer.
    """

    def __init__(self, prompt: str) -> None:
        self._waiting = prompt

    def __call__(self, text: str) -> None:
        """Writes a piece."""
        sys.stdout.write(self._waiting + text)
        sys.stdout.flush()
        self._waiting = ""


def tell_of_full_context(new_tokens: int, asked: int, prompts: int = 1) -> None:
    """Says that answers ended where the context did, before the tokens that were asked for."""
    reason = ": the longest prompt leaves no more" if prompts > 1 else ""
    print(f"the context was full after {new_tokens} new tokens, of --max-new-tokens {asked}{reason}", file=sys.stderr)


def _say(line: str, code: int) -> int:
    with suppress(OSError, ValueError):  # nobody is there to read it
        print(line, file=sys.stderr, flush=True)
    return code


def _open_standard_streams() -> None:
    """Where the shell has closed one (`>&-`), the next file to be opened would take its place and get what is said."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # to write is an error that gets its sentence
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the process lives
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
