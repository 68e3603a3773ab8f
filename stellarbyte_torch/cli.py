"""The command line `stellarbyte-torch`."""

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from stellarbyte_torch.errors import UserError

if TYPE_CHECKING:
    from stellarbyte_torch.generate import Sampling

PROGRAM = "stellarbyte-torch"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 after a mistake that the user can mend, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    """argparse whose mistakes read like all our others: one sentence, no usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="Use StellarByte models in PyTorch.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    generate = commands.add_parser(
        "generate",
        help="continue a prompt with an exported model",
        description="Continue a prompt with an exported model.",
    )
    generate.add_argument("folder", metavar="HF_DIR", type=Path, help="a folder that `stellarbyte-convert to-hf` wrote")
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    _add_generation_options(generate, max_new_tokens=128)
    generate.add_argument("--json", action="store_true", help="print one JSON object instead of streaming the text")
    generate.set_defaults(run=_generate)

    chat = commands.add_parser(
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
    chat.add_argument("--json", action="store_true", help="print one JSON object an answer, or a command's reply")
    chat.set_defaults(run=_chat)

    data = commands.add_parser(
        "data", help="look at fine-tuning data", description="Look at fine-tuning data."
    ).add_subparsers(title="commands", metavar="COMMAND", required=True)
    preview = data.add_parser(
        "preview",
        help="print samples as the model will see them",
        description="Print samples as the model will see them: trained tokens green, or between ⟦ and ⟧.",
    )
    preview.add_argument("config", metavar="CONFIG.yaml", type=Path, help="a fine-tuning config: its data and model")
    preview.add_argument("--samples", type=_count, default=3, metavar="N", help="how many samples (default 3)")
    preview.set_defaults(run=_preview)
    return parser


def _add_generation_options(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0 (default): the likeliest token")
    parser.add_argument("--top-k", type=int, metavar="N", help="sample from the N likeliest (default: from all)")
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample from the likeliest that reach probability P (default: from all)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help=f"stop after N tokens (default {max_new_tokens}), or where the model ends",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="for sampling (default 0)")
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


def _generate(options: argparse.Namespace) -> None:
    # A local folder needs no network, and its loading no progress bar between prompt and answer. Imports come this late
    # because they take seconds, which --help and a misspelt option should not.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers.utils import logging

    from stellarbyte_torch import generate as generation

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sampling = _sampling(options)
    model, tokenizer = generation.load(options.folder, options.device, options.dtype)
    if options.json:
        print(json.dumps(asdict(generation.generate(model, tokenizer, options.prompt, sampling)), ensure_ascii=False))
        return

    started = False

    def write(text: str) -> None:
        nonlocal started
        # The prompt waits for the first new token, so that an error never follows half an answer.
        sys.stdout.write(text if started else options.prompt + text)
        sys.stdout.flush()
        started = True

    generation.generate(model, tokenizer, options.prompt, sampling, on_text=write)
    write("\n")


def _chat(options: argparse.Namespace) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers.utils import logging

    from stellarbyte_torch import chat
    from stellarbyte_torch.chat_session import open_session

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What is no UTF-8 gets its sentence where it is used; a terminal of few characters must not end the talk.
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "backslashreplace")
    session = open_session(options.folder, _sampling(options), options.chat_template, options.device, options.dtype)
    session.system = options.system
    chat.add_adapters(session, options.adapter)
    try:
        if sys.stdin.isatty() and sys.stdout.isatty() and not options.json:
            chat.talk(session, colour=not os.environ.get("NO_COLOR"))
        else:
            chat.answer_lines(session, sys.stdin, as_json=options.json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sampling(options: argparse.Namespace) -> "Sampling":
    from stellarbyte_torch.generate import Sampling

    return Sampling(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )


def _preview(options: argparse.Namespace) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from stellarbyte_torch.data_preview import preview

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal of few characters must not end the preview
    try:
        for text in preview(options.config, options.samples, colour=colour):
            sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone (| head); Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
