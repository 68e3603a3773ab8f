"""Judges how a command ended: in a sentence, rightly accepted, or in one of the ways that no user may see."""

import re
import signal
from pathlib import Path

from hostile.case import Case
from hostile.forked import MOST_BYTES, NO_CASE, Ending

SENTENCE, ACCEPTED, OTHER_CODE = "sentence", "accepted", "other code"
READER_GONE = 141
GOOD = (SENTENCE, ACCEPTED, OTHER_CODE)
BAD = ("traceback", "hang", "memory", "wrong code", "several lines", "no reason", "left behind", "no case")

_OUT_OF_MEMORY = re.compile(
    r"MemoryError|bad_alloc|[Nn]ot enough memory|RESOURCE_EXHAUSTED|Unable to allocate|memory all"
)
_LONGEST_SENTENCE = 1200
# What only stands in a folder while something is being written there.
_UNFINISHED = re.compile(r".*\.(partial|old)|.*\.orbax-checkpoint-tmp.*")
_GOES_ON = re.compile(r"what is done stays in (\S+), and the same command goes on from there")
_INTERRUPTED = re.compile(rf"stellarbyte: interrupted( by SIG\w+)?(: {_GOES_ON.pattern})?")
_SAVED = re.compile(r"stopped after step \d+, saved in (.*?): the same command")


def judge(case: Case, ending: Ending, folder: Path) -> tuple[str, str]:
    """The outcome, and what a reader needs to know of it."""
    err = ending.err.strip("\n")
    last = err.splitlines()[-1] if err else ""
    if ending.code is None:
        return "hang", f"ended after {ending.seconds:.0f} s: {last}"
    if _OUT_OF_MEMORY.search(err) or ending.grown_bytes > MOST_BYTES or ending.code == -signal.SIGKILL:
        return "memory", f"{(ending.grown_bytes) / 2**30:.1f} GiB: {last}"
    if ending.code == NO_CASE:
        return "no case", last
    if "Traceback (most recent call last)" in err or "Exception ignored" in err or ending.code < 0:
        return "traceback", f"exit code {ending.code}: {last}"
    for name in case.absent:
        if (folder / "in" / name).exists():
            return "left behind", f"{name} is there: {last}"
    if ending.code == 2:
        return _of_refusal(case, err, folder)
    if ending.code in case.codes and ending.code > 128 and not case.mute:
        return _of_signal(case, ending, folder)
    if ending.code in case.codes:
        return OTHER_CODE, f"exit code {ending.code}: {last}"
    if ending.code == 0:
        return (ACCEPTED, case.accepted) if case.accepted else ("no reason", f"accepted: {last or ending.out[-200:]!r}")
    return "wrong code", f"exit code {ending.code}: {last}"


def _of_signal(case: Case, ending: Ending, folder: Path) -> tuple[str, str]:
    """Of a command that has been interrupted, or whose reader has left."""
    last = (ending.err.strip() or ending.out.strip()).rpartition("\n")[2]
    if ending.code == READER_GONE:
        lines = [line for line in ending.err.splitlines() if not (case.told and line.startswith(case.told))]
        return ("several lines", f"says {ending.err[:400]!r}") if lines else (OTHER_CODE, "its reader has left")
    stopped = "stopped before the first step" in ending.out + ending.err or _SAVED.search(ending.out + ending.err)
    if not stopped and not _INTERRUPTED.fullmatch(last):
        return "several lines", f"the last line tells of no interruption: {last}"
    if isinstance(stopped, re.Match) and not any((folder / "in" / stopped[1] / "checkpoints").iterdir()):
        return "left behind", f"nothing is saved where it says so: {last}"
    return _left_behind(case, folder, last) or (OTHER_CODE, f"exit code {ending.code}: {last}")


def _left_behind(case: Case, folder: Path, said: str) -> tuple[str, str] | None:
    told = {Path(path).name for path in _GOES_ON.findall(said)}
    unfinished = [
        str(path.relative_to(folder))
        for path in (folder / "in").rglob("*")
        if _UNFINISHED.fullmatch(path.name) and told.isdisjoint(path.parts)
    ]
    return ("left behind", f"{unfinished[:3]}: {said}") if unfinished and not case.abrupt else None


def _of_refusal(case: Case, err: str, folder: Path) -> tuple[str, str]:
    if case.mute:
        return SENTENCE, "exit code 2, and nobody to read why"
    lines = err.split("\n")
    while case.told and lines[0].startswith(case.told):
        err = "\n".join(lines := lines[1:])
    if len(lines) != 1 or not err.startswith("stellarbyte: error: ") or len(err) > _LONGEST_SENTENCE:
        return "several lines", f"{len(lines)} lines, {len(err)} characters: {err[:400]!r}"
    if not err.isprintable() or "site-packages" in err:
        return "several lines", f"a sentence that is not fit to print: {err!r}"
    if case.says not in err:
        return "several lines", f"the sentence does not name {case.says!r}: {err}"
    if case.accepted and not case.either:
        return "wrong code", f"refused, though {case.accepted}: {err}"
    return _left_behind(case, folder, err) or (SENTENCE, err)
