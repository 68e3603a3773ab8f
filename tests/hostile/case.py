"""What a case is: a hostile input and the command that is given it; and what there is to make one of."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

PRETRAINING, BRIDGE, SHOWROOM = "stellarbyte", "stellarbyte convert", "stellarbyte"


@dataclass(frozen=True)
class Command:
    """A command line as a user gives it.

    stdout: a file; "full", a disk without room; "closed", as by `>&-`; or "gone", a pipe that nobody reads any more.
    ascii: whether the terminal knows ASCII alone.
    nobody: whether a user without rights runs it, for whom files can be unreadable.
    signals: those that are sent, and the seconds after which.
    file_size: the most bytes that a file may have, as on a disk that is full then.
    disk: the bytes of a small disk that is mounted at `disk` in the case's folder; root alone can do so.
    fresh: whether Python is started anew, so that a signal may come while it imports.
    """

    program: str
    arguments: Sequence[str | bytes | Path]
    stdin: bytes = b""
    stdout: Literal["file", "full", "closed", "gone"] = "file"
    stderr: Literal["file", "full", "closed"] = "file"
    ascii: bool = False
    nobody: bool = False
    signals: tuple[tuple[int, float], ...] = ()
    file_size: int | None = None
    disk: int | None = None
    fresh: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """The sound things that commands are given, below `base`, and the folder in which a case makes its own.

    base: corpus.jsonl, tokenizer/, run.yaml, shards/, run/, hf/ (its export), lora.yaml, lora/ (a run of adapters on
        run/), peft/ (their export), chat.jsonl, finetune.yaml, tuned/ (a fine-tuned run on hf/, with adapter/), q/
        (hf/, quantised). Nobody may change them.
    """

    base: Path
    folder: Path

    def copy(self, name: str) -> Path:
        """A copy of one of the sound things, for the case to damage."""
        source, copy = self.base / name, self.folder / Path(name).name
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            shutil.copy(source, copy)
        return copy

    def file(self, name: str | bytes, content: str | bytes) -> Path:
        """A file in the case's folder."""
        path = self.folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    def run_yaml(self, changes: str = "", name: str = "run.yaml") -> Path:
        """The pretraining config, whose output goes into the case's folder, with lines put behind it."""
        text = (self.base / "run.yaml").read_text().replace(f"output_dir: {self.base}", f"output_dir: {self.folder}")
        return self.file(name, text + changes)

    def finetune_yaml(self, changes: str = "", name: str = "finetune.yaml") -> Path:
        """The fine-tuning config, whose output goes into the case's folder, with lines put behind it."""
        text = (self.base / "finetune.yaml").read_text()
        return self.file(name, text.replace(f"output_dir: {self.base}", f"output_dir: {self.folder}") + changes)


@dataclass(frozen=True)
class Case:
    """A hostile input.

    make: writes it into the case's folder and says what command is to read it.
    accepted: why it is right that the command takes it; what has no reason has to be refused.
    either: whether a refusal is as good.
    codes: other exit codes that are right, such as 1 where verify finds a difference.
    says: what the sentence has to name.
    told: how lines begin that may stand before the sentence, such as a library's own warning.
    absent: what must not be there afterwards, relative to the case's folder.
    mute: whether nobody can read what it says, so that its exit code has to do.
    abrupt: whether it is ended at once, so that something half-written may be left.
    then: a command that has to work afterwards, on what has been left by one that was not done.
    """

    kind: str
    name: str
    make: Callable[[World], Command]
    accepted: str = ""
    either: bool = False
    codes: tuple[int, ...] = ()
    says: str = ""
    told: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    mute: bool = False
    abrupt: bool = False
    then: Callable[[World], Command] | None = None


Cases = Iterator[Case]


def stellarbyte(*arguments: Any, **options: Any) -> Command:
    """A command of the JAX wing."""
    return Command(PRETRAINING, arguments, **options)


def convert(*arguments: Any, **options: Any) -> Command:
    """A command of the bridge."""
    return Command(BRIDGE, arguments, **options)


def torch(*arguments: Any, **options: Any) -> Command:
    """A command of the PyTorch wing."""
    return Command(SHOWROOM, arguments, **options)
