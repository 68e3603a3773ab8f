"""What each command that runs in PyTorch does with its options; heavy libraries are imported once they are needed."""

import argparse
import json
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stellarbyte.command_line import (
    USER_ERROR,
    StreamedAnswer,
    check_text,
    tell_of_full_context,
)
from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte.interrupt import exit_code, interruptible
from stellarbyte.log_settings import LEVELS, log_settings
from stellarbyte_torch.library_words import hear_libraries

if TYPE_CHECKING:
    from stellarbyte.config.dry_run import DryRun
    from stellarbyte.pruning.report import Report
    from stellarbyte.pruning.request import Request
    from stellarbyte.report.architecture import Architecture
    from stellarbyte.report.measurements import Measured
    from stellarbyte.report.report import Request as ReportRequest
    from stellarbyte_torch.evaluation.scorer import TorchScorer
    from stellarbyte_torch.memory.reader import TorchReader


def generate(options: argparse.Namespace) -> None:
    """Continue prompts, streaming where there is one."""
    # Imports come this late because they take seconds, which --help and a misspelt option should not.
    hear_libraries("stellarbyte")
    from stellarbyte_torch import generate as generation

    for prompt in options.prompt:
        check_text("--prompt", prompt)
    model, tokenizer = generation.load(options.model, options.device, options.dtype, options.quantize)
    request = (options.max_new_tokens, options.sampling, options.seed, options.stop)
    pruning = options.pruning
    cuts = []
    for prompt in options.prompt:
        if options.json:
            done = generation.generate(model, tokenizer, prompt, *request, pruning=pruning)
            record = {name: value for name, value in asdict(done).items() if name != "cut_at"}
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            write = StreamedAnswer(prompt)
            done = generation.generate(model, tokenizer, prompt, *request, on_text=write, pruning=pruning)
            write("\n")
        cuts += [] if done.cut_at is None else [done.cut_at]
    if cuts:
        tell_of_full_context(min(cuts), options.max_new_tokens, len(options.prompt))


def chat(options: argparse.Namespace) -> None:
    """Talk with a model, in the terminal or by piped lines."""
    hear_libraries("stellarbyte")
    from stellarbyte.chat.terminal import run_chat
    from stellarbyte.memory.chat_memory import recall_of
    from stellarbyte_torch.chat.session import add_adapters, open_session
    from stellarbyte_torch.memory.reader import weights_hash

    session = open_session(
        options.model,
        options.sampling,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        stop=options.stop,
        chat_template=options.chat_template,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        pruning=options.pruning,
    )
    add_adapters(session, options.adapter)

    def reader() -> "TorchReader":
        return session.reader(options.model.resolve().name, weights_hash(options.model))

    with recall_of(options, reader) as session.recall:
        run_chat(session, options)


def dry_run(options: argparse.Namespace) -> "DryRun":
    """Check a config, and find out what it comes to."""
    hear_libraries("stellarbyte")
    from stellarbyte_torch.finetune.dry_run import dry_run

    return dry_run(options.config, options.overrides)


def preview(options: argparse.Namespace) -> None:
    """Print samples as the model will see them."""
    hear_libraries("stellarbyte")
    from stellarbyte_torch.finetune.preview import preview as previewed

    colour = options.colour and sys.stdout.isatty()
    for text in previewed(options.config, options.samples, colour=colour, overrides=options.overrides):
        sys.stdout.write(text)
    sys.stdout.flush()


def finetune(options: argparse.Namespace) -> int:
    """Train a model on chat data; the exit code says whether it was interrupted."""
    from stellarbyte.display import Display

    settings, is_first = log_settings(options), options.process == 0
    speaks = settings.includes(options.process)
    # Libraries print as they please, and of JSON stdout takes nothing else.
    printed = redirect_stdout(sys.stderr) if options.json else nullcontext()
    with printed, Display(quiet=not speaks, stderr=options.json, level=LEVELS[settings.level]) as display:
        display.speak_as(options.process, speaks=speaks)
        with display.doing("starting"):
            hear_libraries("stellarbyte", speaks=speaks)
            from stellarbyte.run_log import RunLog
            from stellarbyte_torch.finetune.config import load_finetune_config
            from stellarbyte_torch.finetune.interrupt import Interrupt
            from stellarbyte_torch.finetune.report import closing_table
            from stellarbyte_torch.finetune.run import finetune
        config = load_finetune_config(options.config, options.overrides)
        # Of the processes that train one run, one writes.
        with (
            folder_lock(config.output_dir, doing="finetune") if is_first else nullcontext(),
            RunLog(config.output_dir, display, settings, options.process),
        ):
            summary = finetune(config, display, interrupt := Interrupt(speaks=is_first))
            if summary["finished"] and is_first and not options.json:
                display.end(closing_table(summary))
    if options.json and is_first:
        print(json.dumps(summary))
    if not summary["finished"] and interrupt.number is None:
        return USER_ERROR  # another process has failed, and says how
    return 0 if summary["finished"] else exit_code(interrupt.number)


def merge(options: argparse.Namespace) -> None:
    """Merge an adapter into its base."""
    from stellarbyte.display import Display

    if not (options.adapter / "adapter_config.json").is_file():
        raise UserError(f"{options.adapter} holds no adapter_config.json: give a folder in PEFT's format")
    # From before the work that takes minutes until its result is there.
    with interruptible(), Display(stderr=True) as display, folder_lock(options.output, doing="merge"):
        if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
            raise UserError(f"{options.output} is in use: name a folder that is new or empty")
        with display.doing("starting"):
            hear_libraries("stellarbyte")
            import torch

            from stellarbyte_torch.compressed_folder import is_compressed
            from stellarbyte_torch.lora import load_lora, merge_and_save
            from stellarbyte_torch.lora.folder import read_config as read_adapter
            from stellarbyte_torch.model_folder import load_model, load_tokenizer, read_config
            from stellarbyte_torch.saving import saved_whole

        read_adapter(options.adapter)  # before the model, which takes longer
        with display.doing(f"loading {options.folder}"):
            # The base comes first: a config that is refused makes tokenizers warn.
            base = load_model(options.folder, "cpu", dequantised=True)
            own = (options.adapter / "tokenizer.json").is_file()  # with the chat template that the adapter learnt by
            tokenizer = load_tokenizer(options.adapter if own else options.folder)
        again = ", of floats: `stellarbyte quantize` makes it small again"
        told = again if is_compressed(read_config(options.folder)) else ""
        with display.doing(f"merging {options.adapter}"):
            model = load_lora(base, options.adapter)
            dtype = None if options.dtype == "auto" else getattr(torch, options.dtype)
            with saved_whole(options.output, is_locked=True) as folder:
                drift = merge_and_save(model, folder, dtype, tokenizer)
    print(drift)
    print(f"the merged model is in {options.output}{told}")


def prune(options: argparse.Namespace, request: "Request") -> "list[Report]":
    """Make a smaller folder of a folder's model."""
    hear_libraries("stellarbyte")
    with interruptible():
        from stellarbyte_torch.pruning.folder import prune_folder

        return prune_folder(options.model, options.output, request, data=options.data, device=options.device)


def scorer(folder: Path, device: str | None, dtype: str) -> "TorchScorer":
    """A folder's model, as an evaluation uses it."""
    hear_libraries("stellarbyte")
    from stellarbyte_torch.evaluation.scorer import TorchScorer

    return TorchScorer(folder, device, dtype)


def measured(folder: Path, request: "ReportRequest", architecture: "Architecture") -> "Measured":
    """What a report measures of a folder."""
    hear_libraries("stellarbyte")
    from stellarbyte_torch.report.measuring import measure

    return measure(folder, request, architecture)


def task_model(folder: Path, batch_tokens: int, device: str | None, dtype: str) -> tuple[Any, dict[str, Any]]:
    """A folder's model as lm-eval's tasks use it, and what a report says of it."""
    hear_libraries("stellarbyte")
    from stellarbyte_torch.evaluation.task_model import FolderTaskModel

    opened = scorer(folder, device, dtype)
    return FolderTaskModel(opened, batch_tokens), opened.facts
