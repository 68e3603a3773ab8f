"""The command line `stellarbyte-torch`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stellarbyte.command_line import Parser, check_config_first, report, run_program
from stellarbyte.errors import UserError
from stellarbyte.sampling_options import add_sampling_options
from stellarbyte_torch import commands
from stellarbyte_torch.commands import PROGRAM

# What the extra `torch` brings, and the bare package does without.
_EXTRA_TORCH = ("torch", "transformers", "peft", "accelerate", "huggingface_hub")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code, as docs/exit_codes.md lists them.

    Without `arguments` they are the process's, which then ends with it.
    """
    if arguments is None:
        run_program(PROGRAM, lambda: _run(sys.argv[1:]))
    return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    if overrides and not hasattr(options, "overrides"):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    options.overrides = overrides
    options.colour = not os.environ.get("NO_COLOR")
    options.speaks = os.environ.get("RANK", "0") == "0"  # of the processes that `accelerate launch` starts, one
    if options.run is not commands.finetune:  # whose model may be the Hub's; a local folder needs no network
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        if overrides:
            check_config_first(options.config, overrides)
        return options.run(options) or 0
    except (UserError, KeyboardInterrupt) as error:
        return report(PROGRAM, error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA_TORCH:
            raise
        return report(PROGRAM, UserError(f"{package} is not installed: pip install 'stellarbyte[torch]'"))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description="Use StellarByte models in PyTorch.")
    groups = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    generate = groups.add_parser(
        "generate",
        help="continue a prompt with an exported model",
        description="Continue a prompt with an exported model.",
    )
    generate.add_argument("folder", metavar="HF_DIR", type=Path, help="a folder that `stellarbyte-convert to-hf` wrote")
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    _add_generation_options(generate, max_new_tokens=128)
    generate.add_argument("--json", action="store_true", help="print one JSON object instead of streaming the text")
    generate.set_defaults(run=commands.generate)

    chat = groups.add_parser(
        "chat",
        help="talk with a model, and swap its adapters meanwhile",
        description="Talk with a chat model and swap its adapters meanwhile: /help there lists the commands. "
        "What is piped in is answered line by line.",
    )
    chat.add_argument("folder", metavar="HF_DIR", type=Path, help="a causal language model's Hugging Face folder")
    chat.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="a PEFT folder; give several to swap between them, the first is active",
    )
    chat.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    chat.add_argument(
        "--chat-template", metavar="FILE", help="a Jinja file, or stellarbyte (default: the tokenizer's own)"
    )
    _add_generation_options(chat, max_new_tokens=512)
    chat.add_argument("--echo", action="store_true", help="of lines that are piped in, show each before its answer")
    chat.add_argument("--json", action="store_true", help="print one JSON object an answer, or a command's reply")
    chat.set_defaults(run=commands.chat)

    data = groups.add_parser(
        "data", help="look at fine-tuning data", description="Look at fine-tuning data."
    ).add_subparsers(title="commands", metavar="COMMAND", required=True)
    preview = data.add_parser(
        "preview",
        help="print samples as the model will see them",
        description="Print samples as the model will see them: trained tokens green, or between ⟦ and ⟧.",
        allow_abbrev=False,
    )
    preview.add_argument(
        "config",
        metavar="CONFIG.yaml",
        type=Path,
        help="a fine-tuning config: its data and model; [--section.field value …] override its fields",
    )
    preview.add_argument("--samples", type=_count, default=3, metavar="N", help="how many samples (default 3)")
    preview.set_defaults(run=commands.preview, overrides=[])

    finetune = groups.add_parser(
        "finetune",
        help="train a model on chat data: LoRA, some layers, or all of it",
        description="Train a model on chat data: LoRA, some layers, or all of it. The same command goes on with a run.",
        allow_abbrev=False,
    )
    finetune.add_argument(
        "config", metavar="CONFIG.yaml", type=Path, help="[--section.field value …] override fields of the config"
    )
    finetune.add_argument("--json", action="store_true", help="print the closing figures as one JSON object")
    finetune.set_defaults(run=commands.finetune, overrides=[])

    merge = groups.add_parser(
        "merge",
        help="merge an adapter into its base",
        description="Merge an adapter into its base, in float32, and tell what rounding the result costs.",
    )
    merge.add_argument("folder", metavar="HF_DIR", type=Path, help="the base's Hugging Face folder")
    merge.add_argument("adapter", metavar="ADAPTER", type=Path, help="a folder in PEFT's format")
    merge.add_argument("output", metavar="OUT", type=Path, help="where the merged model goes, a Hugging Face folder")
    merge.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the merged weights (default auto: the base's)",
    )
    merge.set_defaults(run=commands.merge)
    return parser


def _add_generation_options(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    add_sampling_options(parser, max_new_tokens)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps … (default: cuda if there is one)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the weights and the computation (default auto: as saved)",
    )


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is no number of samples")
    return int(word)


if __name__ == "__main__":
    sys.exit(main())
