"""Outputs that take nothing: a full or closed stdout, a reader who has left, full disks, folders without rights."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from hostile.case import Case, Cases, Command, World
from hostile.kinds.command_lines import SOUND, WRITING, Words, _filled, _make

# How the streams are.
STREAMS: dict[str, dict[str, Any]] = {
    "stdout full": {"stdout": "full"},
    "stdout closed": {"stdout": "closed"},
    "no reader": {"stdout": "gone"},
    "stderr full": {"stderr": "full"},
    "stderr closed": {"stderr": "closed"},
    "both full": {"stdout": "full", "stderr": "full"},
    "both closed": {"stdout": "closed", "stderr": "closed"},
    "ASCII alone": {"ascii": True},
}
# What is printed in JSON, too.
WITH_JSON = (
    "plan",
    "evaluate",
    "prune",
    "info",
    "generate",
    "torch generate",
    "chat",
    "chat of a run",
    "finetune",
    "verify",
    "quantize",
)
FILE_SIZES = (1000, 12_000, 40_000)
DISKS = (4096, 32_768, 131_072)
# Where an output is and how the command says so.
_OUT = {"prepare": "--data.shards=", "pretrain": "--output_dir=", "finetune": "--output_dir="}


def _on(world: World, command: str, more: Words = (), inside: str = "", **options: Any) -> Command:
    """The sound command with other streams; `inside` names another folder for what it writes."""
    program, words = SOUND[command]
    given = [f"{inside}/{word}" if word in ("out", "out.jsonl") else word for word in words]
    given = (
        [word.replace("=out", f"={inside}/out") if isinstance(word, str) else word for word in given]
        if inside
        else words
    )
    made = _make(world, program, (*given, *more))
    stdin = b"star\nbyte\n" if command.startswith("chat") else b""
    return replace(made, stdin=stdin, **options)


def _again(world: World, command: str) -> Command:
    """The same command once more, in the folder that it has left."""
    program, words = SOUND[command]
    return program(*_filled(world, words), stdin=b"star\n" if command.startswith("chat") else b"")


def _without_rights(world: World, command: str, mode: int) -> Command:
    folder = world.folder / "locked"
    folder.mkdir()
    folder.chmod(mode)
    return _on(world, command, inside="locked", nobody=True)


def cases() -> Cases:
    """Of every command."""
    for command in SOUND:
        for how, options in STREAMS.items():
            forms = {"": (), " --json": ("--json",)} if command in WITH_JSON else {"": ()}
            for shown, more in forms.items():
                yield _case(
                    f"{command}{shown}, {how}",
                    partial(_on, command=command, more=more, **options),
                    codes=(141,) if how == "no reader" else (),
                    mute="stderr" in options,
                )
    for command in WRITING:
        for size in FILE_SIZES:
            yield _case(
                f"{command}, no file above {size} bytes",
                partial(_on, command=command, file_size=size),
                then=partial(_again, command=command),
            )
        for mode, how in ((0o555, "that is read only"), (0o000, "without rights")):
            yield _case(f"{command} into a folder {how}", partial(_without_rights, command=command, mode=mode))
        for size in DISKS if os.geteuid() == 0 else ():
            yield _case(
                f"{command} onto a disk of {size} bytes", partial(_on, command=command, inside="disk", disk=size)
            )


# How lines of a run begin that stderr takes before anything fails.
_PROGRESS = ("step ", "24 records", "/")
# How an output is -> why it is right that a command takes it. What is printed and lost is never right.
ACCEPTED: dict[str, str] = {
    ", stderr": "what it has to say there is lost, and not what it is asked for",
    ", ASCII alone": "what the terminal cannot show is escaped",
    ", no file above": "no file that it writes is larger",
    " onto a disk": "what it writes fits",
}


def _case(name: str, make: Callable[[World], Command], **fields: Any) -> Case:
    reason = next((reason for part, reason in ACCEPTED.items() if part in name), "")
    return Case("outputs", name, make, reason, either=True, told=_PROGRESS, **fields)
