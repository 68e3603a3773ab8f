"""The one program `stellarbyte`: its commands, and how one of them begins."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from stellarbyte.command_line import Parser, check_config_first, report, run_program
from stellarbyte.errors import UserError

PROGRAM = "stellarbyte"

# The libraries of each extra, by the names that Python imports them by. What needs one that is not installed says so.
EXTRAS = {
    "jax": ("jax", "jaxlib", "ml_dtypes", "flax", "optax", "orbax", "grain", "safetensors"),
    "memory": ("faiss", "psycopg", "pypdf", "model2vec"),
    "embedders": ("sentence_transformers",),
    "plots": ("matplotlib",),
    "cloud": ("fsspec", "gcsfs", "s3fs"),
    "torch": ("torch", "transformers", "peft", "accelerate", "huggingface_hub"),
    "eval": ("lm_eval",),
    "quantization": ("compressed_tensors", "torchao"),
}


@dataclass(frozen=True)
class Command:
    """A command of the program.

    Attributes:
        name: the word that a user types.
        summary: what it does, as --help says it.
        door: the import string of the function that gives its parser the options, and sets `run` there.
        before: the import string of a function of another room, which the command itself may not import. The command
            calls it, as `options.before`, with its options.
    """

    name: str
    summary: str
    door: str
    before: str | None = None


_IMPORT = "convert.init_from:import_init_from"

# By group, in the order of the path from text to a model that answers. A wing is imported when one of its commands is
# typed, so that the ground knows no wing, and --help is quick.
GROUPS: dict[str, tuple[Command, ...]] = {
    "text and tokens": (
        Command("corpus", "write a corpus that is at hand on this machine", "stellarbyte_jax.cli:corpus"),
        Command("tokenizer", "train a tokenizer", "stellarbyte_jax.cli:tokenizer"),
        Command("prepare", "turn text into token shards", "stellarbyte_jax.cli:prepare", before=_IMPORT),
    ),
    "pretraining": (
        Command("pretrain", "train a model, or go on training it", "stellarbyte_jax.cli:pretrain", before=_IMPORT),
        Command("schedule", "print and draw the learning rate of a config", "stellarbyte_jax.cli:schedule"),
        Command("plan", "foresee memory, speed and cost on a machine that is not here", "stellarbyte_jax.cli:plan"),
        Command("checkpoints", "list a run's checkpoints, verify or delete them", "stellarbyte_jax.cli:checkpoints"),
        Command("evaluate", "measure a model on text or on tasks", "stellarbyte.evaluation.cli:evaluate"),
        Command("report", "tell what a model is made of and what it costs", "stellarbyte.report.options:report"),
        Command("plot", "draw the curves of one or several runs", "stellarbyte.cli:plot"),
        Command("watch", "show a page that follows runs while they train", "stellarbyte.watch.cli:watch"),
        Command("prune", "cut a model down to a share of it", "stellarbyte.cli:prune"),
    ),
    "using a model": (
        Command("generate", "continue a prompt with a run's or an exported model", "stellarbyte.cli:generate"),
        Command("chat", "talk with a model, and swap its adapters meanwhile", "stellarbyte.cli:chat"),
        Command("memory", "keep texts that a model may look up", "stellarbyte.cli:memory"),
        Command("kv", "measure what a budget of keys and values costs", "convert.kv_report.options:kv"),
    ),
    "fine-tuning": (
        Command("finetune", "train a Hugging Face model on chat data", "stellarbyte_torch.cli:finetune"),
        Command("data", "look at fine-tuning data, or audit what a run has read", "stellarbyte.cli:data"),
        Command("merge", "merge an adapter into its base", "stellarbyte_torch.cli:merge"),
    ),
    "conversion": (
        Command("convert", "carry models and adapters between runs and Hugging Face", "convert.cli:convert"),
        Command("quantize", "round a model to few bits, if that does no harm", "convert.quantizing.options:quantize"),
    ),
    "help": (
        Command("config", "check a config, and show what it comes to", "stellarbyte.cli:config"),
        Command("info", "tell what a folder is: a run, a model, an adapter …", "stellarbyte.cli:info"),
        Command("env", "tell what a report of a bug should say of this machine", "stellarbyte.environment.cli:env"),
        Command("doctor", "say what is wrong with an installation", "stellarbyte.environment.cli:doctor"),
        Command("completion", "print a shell's completion of these commands", "stellarbyte.cli:completion"),
    ),
}
COMMANDS = {command.name: command for group in GROUPS.values() for command in group}


def program() -> NoReturn:
    """Runs the process's own arguments; the process ends with the exit code that docs/exit_codes.md lists."""
    run_program(PROGRAM, lambda: _run(sys.argv[1:], own_process=True))


def main(arguments: Sequence[str]) -> int:
    """Runs a command within this process; returns the exit code, as docs/exit_codes.md lists them."""
    try:
        return _run(arguments, own_process=False)
    except (UserError, KeyboardInterrupt) as error:
        return report(PROGRAM, error)


def build_parser() -> Parser:
    """The parser of all commands; each command's options are added when it is the one to be parsed, or by `fill`."""
    parser = _ProgramParser(prog=PROGRAM, description="Pretrain decoder language models in JAX, use them in PyTorch.")
    parser.add_argument("--version", action=_Version, help="show the versions of StellarByte and its libraries")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=CommandParser)
    for command in COMMANDS.values():
        description = f"{command.summary[0].upper()}{command.summary[1:]}."
        added = commands.add_parser(command.name, help=command.summary, description=description)
        added.door = command.door
        if command.before is not None:
            added.set_defaults(before=_imported_late(command.before))
    return parser


def _imported_late(function: str) -> Callable[..., Any]:
    """The function that an import string names; it is imported when it is called."""

    def call(*arguments: Any) -> Any:
        module, _, name = function.partition(":")
        return getattr(import_module(module), name)(*arguments)

    return call


def _run(arguments: Sequence[str], own_process: bool) -> int:
    parser = build_parser()
    try:
        options, rest = parser.parse_known_args(arguments)
        # What is left over overrides fields of a config.
        if rest and not options.takes_overrides:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.overrides, options.own_process = rest, own_process
        if rest and hasattr(options, "config"):
            check_config_first(options.config, rest)
        return options.run(options) or 0
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        extra = next((extra for extra, libraries in EXTRAS.items() if library in libraries), None)
        if extra is None:
            raise
        raise UserError(f"{library} is not installed: pip install 'stellarbyte[{extra}]'") from error


class CommandParser(Parser):
    """A command's parser, which imports the command's options when it is used."""

    door: str | None = None

    def __init__(self, **settings: Any) -> None:
        # An option may be no abbreviation: what is not an option of the command may override a field of its config.
        # A command may have a --help of its own.
        super().__init__(**settings, allow_abbrev=False, conflict_handler="resolve")
        self.set_defaults(takes_overrides=False)

    def fill(self) -> None:
        """Adds the options, once."""
        if self.door is not None:
            door, self.door = self.door, None
            _imported_late(door)(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse does, with the command's options."""
        self.fill()
        return super().parse_known_args(args, namespace)


class _ProgramParser(Parser):
    def format_help(self) -> str:
        """The commands by group, which argparse would put into one list."""
        lines = [f"usage: {PROGRAM} COMMAND …", "", str(self.description), ""]
        for title, commands in GROUPS.items():
            lines += [f"{title}:", *(f"  {command.name:<12}{command.summary}" for command in commands), ""]
        lines += ["options:", "  -h, --help  show this; after a command, show its options"]
        lines += ["  --version   show the versions of StellarByte and its libraries"]
        return "\n".join(lines) + "\n"


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        found = [f"Python {sys.version.split()[0]}"]
        for library in ("jax", "flax", "torch", "transformers", "peft"):
            try:
                found.append(f"{library} {version(library)}")
            except PackageNotFoundError:
                found.append(f"no {library}")
        print(f"{PROGRAM} {version(PROGRAM)} ({', '.join(found)})")
        parser.exit()
