"""The options of the commands that run in PyTorch."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stellarbyte.command_line import prepared_by
from stellarbyte.log_settings import log_options
from stellarbyte_torch import commands

if TYPE_CHECKING:
    from stellarbyte.config.dry_run import DryRun
    from stellarbyte.evaluation.scorer import Scorer
    from stellarbyte.pruning.report import Report
    from stellarbyte.pruning.request import Request as PruneRequest
    from stellarbyte.report.architecture import Architecture
    from stellarbyte.report.measurements import Measured
    from stellarbyte.report.report import Request


# A command whose models are in local folders; only fine-tuning may take one from the Hub.
_offline = prepared_by(lambda: os.environ.setdefault("HF_HUB_OFFLINE", "1"))


@_offline
def generate(options: argparse.Namespace) -> None:
    """`stellarbyte generate` of a Hugging Face folder."""
    commands.generate(options)


@_offline
def chat(options: argparse.Namespace) -> None:
    """`stellarbyte chat` with a Hugging Face folder."""
    commands.chat(options)


@_offline
def scorer(folder: Path, *, device: str | None, dtype: str) -> "Scorer":
    """A folder's model, as an evaluation uses it. Raises UserError where `TorchScorer` does."""
    return commands.scorer(folder, device, dtype)


@_offline
def measured(folder: Path, request: "Request", architecture: "Architecture") -> "Measured":
    """What `stellarbyte report` measures of a folder. Raises UserError where `measure` does."""
    return commands.measured(folder, request, architecture)


@_offline
def task_model(folder: Path, batch_tokens: int, *, device: str | None, dtype: str) -> tuple[Any, dict[str, Any]]:
    """(a folder's model as lm-eval's tasks use it, what a report says of it); raises as `TorchScorer` does."""
    return commands.task_model(folder, batch_tokens, device, dtype)


def dry_run(options: argparse.Namespace) -> "DryRun":
    """What `stellarbyte config` shows of a fine-tuning config."""
    return commands.dry_run(options)


def finetune(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte finetune`."""
    parser.add_argument(
        "config",
        metavar="CONFIG.yaml",
        type=Path,
        help="[--section.field value …] override its fields; `stellarbyte config --help finetune` tells of them",
    )
    parser.add_argument("--json", action="store_true", help="print the closing figures as one JSON object")
    log_options(parser)

    def run(options: argparse.Namespace) -> int:
        options.process = int(os.environ.get("RANK", "0"))  # of those that torchrun or accelerate starts
        return commands.finetune(options)

    parser.set_defaults(run=run, takes_overrides=True)


def preview(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte data preview`."""
    parser.description = "Print samples as the model will see them: trained tokens green, or between ⟦ and ⟧."
    parser.add_argument(
        "config",
        metavar="CONFIG.yaml",
        type=Path,
        help="a fine-tuning config: its data and model; [--section.field value …] override its fields",
    )
    parser.add_argument("--samples", type=_count, default=3, metavar="N", help="how many samples (default 3)")
    parser.set_defaults(run=_offline(commands.preview), takes_overrides=True, colour=not os.environ.get("NO_COLOR"))


def merge(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte merge`."""
    parser.description = "Merge an adapter into its base, in float32, and tell what rounding the result costs."
    parser.add_argument("folder", metavar="HF_DIR", type=Path, help="the base's Hugging Face folder")
    parser.add_argument("adapter", metavar="ADAPTER", type=Path, help="a folder in PEFT's format")
    parser.add_argument("output", metavar="OUT", type=Path, help="where the merged model goes, a Hugging Face folder")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the merged weights (default auto: the base's)",
    )
    parser.set_defaults(run=_offline(commands.merge))


@_offline
def prune(options: argparse.Namespace, request: "PruneRequest") -> "list[Report]":
    """`stellarbyte prune` of a Hugging Face folder."""
    return commands.prune(options, request)


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is no number of samples")
    return int(word)
