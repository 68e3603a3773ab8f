"""What a run says on the terminal and in its log, and the command line's options for it."""

import argparse
from dataclasses import dataclass
from typing import Literal

LEVELS: dict[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40, "none": 99}


@dataclass(frozen=True)
class LogSettings:
    """What a run says, and where.

    level: the least that the terminal shows; with error nothing but the error that ends a command. file_level: the
    least that goes into the file; debug has the lines of progress too, and none makes no file. processes: those that
    speak and write; None for all.
    """

    level: Literal["info", "warning", "error"] = "info"
    file_level: Literal["debug", "info", "warning", "error", "none"] = "info"
    processes: tuple[int, ...] | None = (0,)

    def includes(self, index: int) -> bool:
        """Whether the process of this index speaks and writes."""
        return self.processes is None or index in self.processes


def log_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that make LogSettings."""
    parser.add_argument(
        "--log-level",
        choices=("info", "warning", "error"),
        default="info",
        help="the least that the terminal shows (default: info)",
    )
    parser.add_argument(
        "--log-file-level",
        choices=tuple(LEVELS),
        default="info",
        help="the least that goes into RUN/log.txt (default: info)",
    )
    parser.add_argument(
        "--log-processes",
        type=_processes,
        default=(0,),
        metavar="0,1 … | all",
        help="the processes that speak; each but 0 writes a file of its own, such as RUN/log-1.txt (default: 0)",
    )


def log_settings(options: argparse.Namespace) -> LogSettings:
    """The settings that the options of `log_options` make."""
    return LogSettings(options.log_level, options.log_file_level, options.log_processes)


def _processes(text: str) -> tuple[int, ...] | None:
    if text == "all":
        return None
    words = text.split(",")
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} names no processes: write their numbers, as in 0,3, or all")
    return tuple(map(int, words))
