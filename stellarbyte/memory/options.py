"""The options of `stellarbyte memory`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from stellarbyte.command_line import folder_or_bucket
from stellarbyte.errors import UserError
from stellarbyte.memory.entries import Outcome
from stellarbyte.places import is_remote

_EMBEDDER = "what makes vectors: a run, a model's folder, or one of sentence-transformers or model2vec"


def memory_options(parser: argparse.ArgumentParser) -> None:
    """Adds the commands of `stellarbyte memory`."""
    parser.description = (
        "Keep texts that a model may look up, in one file or in a PostgreSQL database. What is deleted is gone."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, summary: str, *, user: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        added.add_argument("memory", metavar="MEMORY", type=memory_place, help="a file, or postgresql://HOST/DATABASE")
        if user:
            added.add_argument(
                "--user", default="", metavar="NAME", help="whose memory (default: the one without name)"
            )
        added.add_argument("--json", action="store_true", help="print JSON, one object a line")
        added.set_defaults(run=_late(name))
        return added

    add = command("add", "remember texts, as far as the gate lets them in")
    add.add_argument("--embedder", type=folder_or_bucket, metavar="FOLDER", help=_EMBEDDER)
    add.add_argument(
        "--judge",
        type=folder_or_bucket,
        metavar="FOLDER",
        help="the model that a turn must surprise: a run or a folder",
    )
    add.add_argument("text", metavar="TEXT", nargs="+", help="what to remember; - reads one from each line of stdin")
    add.add_argument("--source", default="", metavar="TEXT", help="where the texts come from")
    add.add_argument(
        "--kind", choices=("note", "turn"), default="note", help="turn: judge them as what is said in a chat"
    )
    add.add_argument("--days", type=float, metavar="N", help="delete them after N days")

    ingested = command("ingest", "cut documents into passages and keep these; read again, replace what has changed")
    ingested.add_argument("--embedder", type=folder_or_bucket, metavar="FOLDER", help=_EMBEDDER)
    ingested.add_argument(
        "paths", metavar="PATH", nargs="+", help="files, or folders of them: text, Markdown, Python, HTML, PDF, records"
    )
    ingested.add_argument(
        "--on-bad-file", choices=("fail", "skip"), default="fail", help="what to do about one that cannot be read"
    )

    search = command("search", "show the entries that answer a query best")
    search.add_argument("--embedder", type=folder_or_bucket, metavar="FOLDER", help=_EMBEDDER)
    search.add_argument("query", metavar="QUERY", nargs="+")
    search.add_argument("--limit", type=int, default=5, metavar="N", help="show at most N (default 5)")
    search.add_argument(
        "--how", choices=("hybrid", "words", "vectors"), default="hybrid", help="by what (default: hybrid, of both)"
    )
    search.add_argument("--floor", type=float, metavar="F", help="leave out scores below F, from 0 to 1")

    listed = command("list", "show all entries, the newest first")
    listed.add_argument("--limit", type=int, metavar="N", help="show at most N")
    listed.add_argument("--kind", choices=("note", "turn", "passage"), help="of this kind alone")

    delete = command("delete", "delete entries with all that was derived from them")
    delete.add_argument("id", metavar="ID", nargs="+", type=int)

    update = command("update", "give an entry another text; the old one goes into its history")
    update.add_argument("id", metavar="ID", type=int)
    update.add_argument("text", metavar="TEXT", nargs="+")

    history = command("history", "show the texts that an entry had")
    history.add_argument("id", metavar="ID", type=int)

    log = command("log", "show what the gate has decided, and why")
    log.add_argument("--limit", type=int, default=50, metavar="N", help="show the newest N (default 50)")
    log.add_argument("--outcome", choices=get_args(Outcome), metavar="NAME", help=", ".join(get_args(Outcome)))
    log.add_argument("--entry", type=int, metavar="ID", help="what has happened to this entry")

    forget = command("forget", "delete all that a user has, the log too", user=False)
    forget.add_argument("--user", required=True, metavar="NAME", help="whose memory; '' is the one without name")

    command("audit", "run the gate over the entries, and look for what is left of deleted ones")

    exported = command("export", "write the entries to a file of JSON lines")
    exported.add_argument("file", metavar="FILE", type=Path)

    imported = command("import", "add the entries of a file of JSON lines, all or none")
    imported.add_argument("file", metavar="FILE", type=Path)

    reembed = command("reembed", "make all vectors anew by another embedder", user=False)
    reembed.add_argument("--embedder", required=True, type=folder_or_bucket, metavar="FOLDER", help=_EMBEDDER)

    settings = command("settings", "show the settings, or change those that are given", user=False)
    settings.add_argument("--capacity", type=int, metavar="N", help="the most entries of a user")
    settings.add_argument(
        "--retention-days", metavar="N", help="delete what was not said or used for N days; none: keep all"
    )
    settings.add_argument(
        "--duplicate", type=float, metavar="F", help="from which similarity on long texts say the same"
    )
    settings.add_argument(
        "--surprise", type=float, metavar="F", help="the share of the entries' usual surprise that a turn must have"
    )
    settings.add_argument("--floor", type=float, metavar="F", help="the score below which a search leaves out")
    settings.add_argument("--log-entries", type=int, metavar="N", help="the most decisions that the log keeps")

    command("vacuum", "give the room of deleted entries back", user=False)
    command("users", "list the users, and how many entries each has", user=False)


def memory_place(word: str) -> Path | str:
    """The type of MEMORY: a file, or the URL of a database."""
    if word.startswith(("postgresql://", "postgres://")):
        return word
    if not word:
        raise argparse.ArgumentTypeError("'' names no memory: give a file")
    if is_remote(word) or "://" in word:
        raise argparse.ArgumentTypeError(f"{word} is neither a file of this machine nor postgresql://HOST/DATABASE")
    return Path(word)


def _late(name: str) -> Callable[[argparse.Namespace], Any]:
    """The function of commands.py, which is imported when the command runs."""

    def run(options: argparse.Namespace) -> Any:
        if getattr(options, "limit", None) is not None and options.limit < 1:
            raise UserError(f"--limit {options.limit} must be at least 1")
        from stellarbyte.memory import commands

        return getattr(commands, {"import": "import_"}.get(name, name))(options)

    return run
