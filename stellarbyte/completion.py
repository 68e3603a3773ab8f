"""Completion of the program's commands, options and files by a shell."""

import argparse
from pathlib import Path

import shtab

from stellarbyte.door import CommandParser, build_parser


def completion(shell: str) -> str:
    """The script that teaches a shell (bash, zsh or tcsh) the commands and their options."""
    parser = build_parser()
    _fill(parser)
    script: str = shtab.complete(parser, shell=shell)
    return script


def _fill(parser: argparse.ArgumentParser) -> None:
    """Adds all commands' options, and says which of them are files."""
    if isinstance(parser, CommandParser):
        parser.fill()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _fill(command)
        elif action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
