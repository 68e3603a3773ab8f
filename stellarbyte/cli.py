"""The commands of no one wing: generate and chat (a run or a folder), memory, config, info, plot, completion."""

import argparse
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from stellarbyte.command_line import folder_or_bucket
from stellarbyte.errors import UserError
from stellarbyte.kv_cache.options import add_pruning_options, pruning_of
from stellarbyte.memory.chat_options import add_memory_options, check_memory_options
from stellarbyte.places import local
from stellarbyte.sampling_options import add_sampling_options, sampling_of

# The options that only one kind of model has, with the value that says that the user has not set them.
_OF_RUNS: dict[str, Any] = {"step": None, "draft": None, "draft_tokens": None, "kv_cache_dtype": None}
_OF_FOLDERS: dict[str, Any] = {"device": None, "adapter": []}


def generate(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte generate`."""
    parser.add_argument(
        "model", type=folder_or_bucket, nargs="?", metavar="MODEL", help="a run, or a Hugging Face folder"
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT", nargs="+", help="the text to continue, or several")
    add_sampling_options(parser, max_new_tokens=128)
    _add_model_options(parser)
    parser.add_argument(
        "--draft",
        type=folder_or_bucket,
        metavar="RUN_DIR",
        help="of a run: a smaller run, to guess tokens that this one checks",
    )
    parser.add_argument(
        "--draft-tokens", type=int, metavar="N", help="of a run: tokens guessed between two checks (default 4)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a prompt instead of streaming")
    # MODEL may stand behind --prompt, which takes several words; what is left over then is no override.
    parser.set_defaults(run=_generate, takes_overrides=True)


def chat(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte chat`."""
    parser.description = (
        "Talk with a chat model and swap its adapters meanwhile: /help there lists the commands. "
        "What is piped in is answered line by line."
    )
    parser.add_argument(
        "model", metavar="MODEL", type=folder_or_bucket, help="a run, or a causal language model's folder"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="of a Hugging Face folder: a PEFT folder; give several to swap between them, the first is active",
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    parser.add_argument(
        "--chat-template", metavar="FILE", help="a Jinja file, or stellarbyte (default: the tokenizer's own)"
    )
    add_sampling_options(parser, max_new_tokens=512)
    _add_model_options(parser)
    add_memory_options(parser)
    parser.add_argument("--echo", action="store_true", help="of lines that are piped in, show each before its answer")
    parser.add_argument("--json", action="store_true", help="print one JSON object an answer, or a command's reply")
    parser.set_defaults(run=_chat)


def config(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte config`."""
    parser.description = (
        "Check a config of pretraining or fine-tuning, print it with every default filled in, and tell what it comes "
        "to: data, tokenizer, mesh, shapes. Nothing is written."
    )
    parser.epilog = "`stellarbyte config --help data` tells of the fields of a section, `--help data.sources` of one."
    parser.add_argument(
        "-h", "--help", nargs="?", action=_FieldHelp, metavar="FIELD", help="show this, or the fields of a section"
    )
    parser.add_argument(
        "config", metavar="CONFIG.yaml", type=Path, help="[--section.field value …] override its fields"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_config, takes_overrides=True)


def info(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte info`."""
    parser.description = "Tell what a folder is: a run, a model, an adapter, token shards or a tokenizer."
    parser.add_argument("path", metavar="FOLDER", type=folder_or_bucket)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_info)


def data(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte data`, whose commands are of different wings."""
    from stellarbyte.door import CommandParser

    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary, door in (
        ("preview", "print samples as a fine-tuned model will see them", "stellarbyte_torch.cli:preview"),
        (
            "audit",
            "prove from a run's ledger that every sample came once an epoch",
            "stellarbyte_jax.data_commands:audit",
        ),
    ):
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        assert isinstance(command, CommandParser)
        command.door = door


def prune(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte prune`."""
    from stellarbyte.pruning.options import prune_options

    prune_options(parser)


def memory(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte memory`."""
    from stellarbyte.memory.options import memory_options

    memory_options(parser)


def plot(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte plot`."""
    parser.description = (
        "Draw loss, learning rate, gradient norm and throughput of one or several runs, of pretraining or fine-tuning."
    )
    parser.add_argument("runs", metavar="RUN", type=folder_or_bucket, nargs="+", help="the output_dir of a run")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="a file that ends in .html, .svg or .png (default: curves.html in the first run)",
    )
    parser.add_argument("--by", choices=("step", "tokens"), default="step", help="what to draw over (default: step)")
    parser.add_argument(
        "--smooth", type=int, metavar="N", help="draw means over N steps, 1 for none (default: a fiftieth of each run)"
    )
    parser.set_defaults(run=_plot)


def completion(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte completion`."""
    parser.description = "Print a shell's completion of these commands."
    parser.epilog = (
        "bash: stellarbyte completion bash > ~/.local/share/bash-completion/completions/stellarbyte; "
        "zsh: save it as _stellarbyte in a folder of $fpath."
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(run=_completion)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--step", type=int, metavar="N", help="of a run: the checkpoint of step N (default: newest)")
    parser.add_argument(
        "--quantize",
        choices=("int8", "int8-dynamic"),
        help="int8: read the weights as int8, which takes a quarter of the memory; int8-dynamic, of a Hugging Face "
        "folder: round the layers' inputs as well",
    )
    parser.add_argument(
        "--kv-cache-dtype",
        choices=("int8", "float8"),
        help="of a run: keep keys and values in 8 bits each (default: in the dtype of the computation)",
    )
    add_pruning_options(parser)
    parser.add_argument(
        "--device", metavar="NAME", help="of a Hugging Face folder: cpu, cuda, mps … (default: cuda if there is one)"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the computation (default auto: of a run float32, of a folder as saved)",
    )


def _generate(options: argparse.Namespace) -> int | None:
    rest = options.overrides
    if options.model is None and rest and not rest[0].startswith("-"):
        options.model, rest = folder_or_bucket(rest[0]), rest[1:]
    elif options.model is None and len(options.prompt) > 1:
        options.model = folder_or_bucket(options.prompt.pop())
    if rest:
        raise UserError(f"unrecognized arguments: {' '.join(rest)}")
    if options.model is None:
        raise UserError("the following arguments are required: MODEL")
    return _by_its_wing("generate", options)


def _chat(options: argparse.Namespace) -> int | None:
    check_memory_options(options)
    options.colour = not os.environ.get("NO_COLOR")
    return _by_its_wing("chat", options)


def _by_its_wing(command: str, options: argparse.Namespace) -> int | None:
    """Runs the command of the wing whose model it is. Raises UserError: it is no model, or lacks an option."""
    from stellarbyte.model_kind import model_kind, wing_of

    options.sampling, options.pruning = sampling_of(options), pruning_of(options)
    kind = model_kind(options.model)
    if kind == "model":
        local(options.model, "MODEL", "Hugging Face folders are read from this machine: copy it here")
    others, whose = (_OF_FOLDERS, "Hugging Face folders") if kind == "run" else (_OF_RUNS, "runs")
    for name, unset in others.items():
        if getattr(options, name, unset) != unset:
            what = "a run" if kind == "run" else "a Hugging Face folder"
            raise UserError(f"--{name.replace('_', '-')} is for {whose}, and {options.model} is {what}: leave it out")
    if kind == "run" and options.dtype == "float16":
        raise UserError(f"--dtype float16 is for Hugging Face folders, and {options.model} is a run: take bfloat16")
    if kind == "run" and options.quantize == "int8-dynamic":
        raise UserError(f"--quantize int8-dynamic is for Hugging Face folders, and {options.model} is a run: take int8")
    result: int | None = getattr(wing_of(kind), command)(options)
    return result


class _FieldHelp(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        """Shows the command's help and the sections of a config, or the help of one section or field."""
        del namespace, option_string
        from stellarbyte.config.fields import FINETUNING, describe

        if values is None:
            parser.print_help()
            print(f"\n{describe()}")
        else:
            if values.partition(".")[0] == FINETUNING:  # whose fields are libraries' in part
                import_module("stellarbyte_torch.library_words").hear_libraries("stellarbyte")
            print(describe(values))
        parser.exit()


def _config(options: argparse.Namespace) -> None:
    from stellarbyte.config.kind import kind_of
    from stellarbyte.model_kind import wing_of

    found = wing_of("run" if kind_of(options.config) == "pretraining" else "model").dry_run(options)
    print(json.dumps(found.to_dict()) if options.json else found.text())


def _info(options: argparse.Namespace) -> None:
    from stellarbyte.info import info, info_text

    print((json.dumps if options.json else info_text)(info(options.path)))


def _plot(options: argparse.Namespace) -> None:
    from stellarbyte.curves import read_runs
    from stellarbyte.plot import check_output, plot

    if options.smooth is not None and options.smooth < 1:
        raise UserError(f"--smooth {options.smooth} must be at least 1")
    output = options.output
    if output is None:
        output = local(options.runs[0], "RUN", "a drawing goes to this machine: name it with -o") / "curves.html"
    check_output(output)
    replaced = output.exists()
    plot(read_runs(options.runs), output, options.by, options.smooth)
    print(f"{output}{' (replaced)' if replaced else ''}")


def _completion(options: argparse.Namespace) -> None:
    from stellarbyte.completion import completion

    print(completion(options.shell))
