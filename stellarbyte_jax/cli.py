"""The options of the commands that run in JAX, and what has to be set before JAX is imported."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stellarbyte.command_line import folder_or_bucket, prepared_by
from stellarbyte.interrupt import hold_signals
from stellarbyte.log_settings import log_options
from stellarbyte.places import Place
from stellarbyte_jax import checkpoint_commands, commands, data_commands, text_commands
from stellarbyte_jax.machine.compile_cache import cache_settings
from stellarbyte_jax.machine.xla_flags import Platform, flag_settings, platform_here

if TYPE_CHECKING:
    from stellarbyte.config.dry_run import DryRun
    from stellarbyte.evaluation.scorer import Scorer
    from stellarbyte.pruning.report import Report
    from stellarbyte.pruning.request import Request as PruneRequest
    from stellarbyte.report.architecture import Architecture
    from stellarbyte.report.measurements import Measured
    from stellarbyte.report.report import Request
    from stellarbyte.report.stored_arrays import StoredArray

# What JAX reads of the environment, and the config's name for it. The rest of what it knows of clusters it detects.
DISTRIBUTED_VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "{}",
    "JAX_LOCAL_DEVICE_IDS": "[{}]",
}

# On a CPU, XLA takes a program's scratch anew from malloc for every call, and with it hundreds of thousands of page
# faults: with memory that is kept, in huge pages, a training step is about a tenth faster. glibc reads its tunables
# only when a process starts.
MALLOC_TUNABLES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0"
    ":glibc.malloc.trim_threshold=9000000000000000000"
}


def _give_cpu_devices_threads() -> None:
    # XLA has a thread for each CPU device; where devices wait in different collectives, all threads can be taken up for
    # ever. It reads NPROC when JAX starts.
    devices = os.environ.get("JAX_NUM_CPU_DEVICES", "")
    if devices.isdecimal() and int(devices) > 1:
        os.environ.setdefault("NPROC", str(4 * int(devices)))


def _keep_compiled_programs() -> tuple[str, ...]:
    """Sets where JAX keeps them; returns what the user should see of it."""
    settings, remark = cache_settings(os.environ)
    os.environ.update(settings)
    return () if remark is None else (remark,)


# A command that compiles programs, which JAX keeps for the next time.
_compiling = prepared_by(_give_cpu_devices_threads, _keep_compiled_programs)


def corpus(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte corpus`."""
    parser.add_argument("name", choices=["stdlib"], help="stdlib: the Python standard library, one document a file")
    parser.add_argument("output", type=Path, metavar="OUT.jsonl")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--chat", action="store_true", help="as questions and answers made of its docstrings, in the messages format"
    )
    form.add_argument("--questions", action="store_true", help="as multiple-choice questions: which line comes next")
    parser.add_argument("--force", action="store_true", help="replace a file of other content that is there")
    parser.set_defaults(run=commands.corpus)


def tokenizer(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte tokenizer train`."""
    train = parser.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "train", help="train a byte-level BPE on text", description="Train a byte-level BPE on text."
    )
    data_commands.add_training_options(train)
    train.set_defaults(run=commands.tokenizer_train)


def prepare(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte prepare`."""
    _config_argument(parser)
    data_commands.add_part_options(parser)
    parser.set_defaults(run=data_commands.prepare)


def pretrain(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte pretrain`."""
    _config_argument(parser)
    parser.add_argument("--profile", metavar="START:STOP", help="trace these steps, both included, for xprof")
    parser.add_argument(
        "--dump-hlo", type=Path, metavar="DIR", help="write the train step's HLO, before and after optimisation"
    )
    parser.add_argument("--amend", action="store_true", help="let a run go on with another config, and record it")
    parser.add_argument("--no-memory-check", action="store_true", help="try a run that the planner says does not fit")
    _xla_flags_option(parser)
    log_options(parser)

    def run(options: argparse.Namespace) -> int:
        if options.own_process:
            _restart_with_tuned_malloc()
        _give_cpu_devices_threads()
        options.overrides = [*_distributed_by_environment(), *options.overrides]
        options.remarks = _keep_compiled_programs()
        platform = platform_here(os.environ)
        if platform is not None and not options.no_xla_flags:
            options.remarks += _set_xla_flags(platform)
        return commands.pretrain(options)

    parser.set_defaults(run=run)


def schedule(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte schedule`."""
    parser.description = "Print and draw the learning rate of each step, by a config or of a run; nothing is trained."
    _config_argument(parser, "CONFIG.yaml or RUN_DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object")

    def run(options: argparse.Namespace) -> None:
        from stellarbyte_jax.planning.run_parts import parts_of
        from stellarbyte_jax.planning.schedule_report import schedule_facts, schedule_text

        parts = parts_of(options.config, options.overrides)
        print(json.dumps(schedule_facts(parts)) if options.json else schedule_text(parts))

    parser.set_defaults(run=run)


def plan(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte plan`."""
    _config_argument(parser)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="CHIP:SIDES",
        help="v5e:16x16, v4, v5p, v6e alike, h100:8x4 (4 nodes); cpu",
    )
    parser.add_argument("--slices", type=int, metavar="N", help="so many of them (default: mesh.slices)")
    parser.add_argument(
        "--tokens", type=_tokens, metavar="N", help="also time and cost of so many tokens, such as 300B"
    )
    parser.add_argument("--price", type=float, metavar="X", help="US dollars a chip and hour (default: the list price)")
    parser.add_argument(
        "--search", action="store_true", help="the best meshes, accumulation and remat for the same batch, as a table"
    )
    parser.add_argument(
        "--compile", action="store_true", help="ask the real TPU compiler as well (extra tpu; takes minutes)"
    )
    _xla_flags_option(parser)
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the memory of a chip, part by part")
    parser.add_argument("--json", action="store_true", help="print one JSON object")

    def run(options: argparse.Namespace) -> None:
        _give_cpu_devices_threads()
        options.remarks = _set_xla_flags("tpu") if options.compile and not options.no_xla_flags else ()
        commands.plan(options)

    parser.set_defaults(run=run)


def checkpoints(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte checkpoints`."""
    parser.description = "List a run's checkpoints: step, age, size, figures, and why each is kept."
    parser.add_argument("run_dir", type=folder_or_bucket, metavar="RUN_DIR", help="the output_dir of a pretraining run")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--verify", action="store_true", help="read all files, and say which checkpoints are damaged")
    what.add_argument("--delete", type=int, metavar="STEP", help="delete the checkpoint of this step")
    parser.add_argument(
        "--force", action="store_true", help="delete it even if it is the only one, or another run needs it"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=checkpoint_commands.checkpoints)


@_compiling
def evaluate(options: argparse.Namespace) -> None:
    """`stellarbyte evaluate` of a run on its own validation split."""
    commands.evaluate(options)


@_compiling
def scorer(run_dir: Place, *, step: int | None, dtype: str, ema: bool) -> "Scorer":
    """A run's model, as an evaluation uses it. Raises UserError where `JaxScorer` does."""
    return commands.scorer(run_dir, step, dtype, ema=ema)


@_compiling
def task_model(
    run_dir: Place, batch_tokens: int, *, step: int | None, dtype: str, ema: bool
) -> tuple[Any, dict[str, Any]]:
    """(a run's model as lm-eval's tasks use it, what a report says of it). Raises UserError where `JaxScorer` does."""
    return commands.task_model(run_dir, batch_tokens, step, dtype, ema=ema)


@_compiling
def prune(options: argparse.Namespace, request: "PruneRequest") -> "list[Report]":
    """`stellarbyte prune` of a run."""
    return commands.prune(options, request)


@_compiling
def measured(run_dir: Place, request: "Request", architecture: "Architecture") -> "Measured":
    """What `stellarbyte report` measures of a run. Raises UserError where `measure` does."""
    from stellarbyte_jax.report.measuring import measure

    return measure(run_dir, request, architecture)


@_compiling
def weight_arrays(run_dir: Place) -> "tuple[dict[str, StoredArray], dict[str, StoredArray]]":
    """(a run's weights, its first weights). Raises UserError where `weight_arrays` of the report does."""
    from stellarbyte_jax.report import weights

    return weights.weight_arrays(run_dir)


@_compiling
def generate(options: argparse.Namespace) -> None:
    """`stellarbyte generate` of a run."""
    text_commands.generate(options)


@_compiling
def chat(options: argparse.Namespace) -> None:
    """`stellarbyte chat` with a run."""
    text_commands.chat(options)


def dry_run(options: argparse.Namespace) -> "DryRun":
    """What `stellarbyte config` shows of a pretraining config."""
    _give_cpu_devices_threads()
    from stellarbyte_jax.planning.dry_run import dry_run

    return dry_run(options.config, options.overrides)


def _restart_with_tuned_malloc() -> None:
    if sys.platform == "linux" and not MALLOC_TUNABLES.keys() & os.environ.keys():
        hold_signals()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **MALLOC_TUNABLES})


def _set_xla_flags(platform: Platform) -> tuple[str, ...]:
    """Sets what XLA reads when it starts; returns what the user should see of it."""
    settings, remark = flag_settings(os.environ, platform)
    os.environ.update(settings)
    return () if remark is None else (remark,)


def _distributed_by_environment() -> list[str]:
    given = ((name, os.environ.get(name)) for name in DISTRIBUTED_VARIABLES)
    return [
        f"--distributed.{name.removeprefix('JAX_').lower()}={DISTRIBUTED_VARIABLES[name].format(value)}"
        for name, value in given
        if value
    ]


def _config_argument(parser: argparse.ArgumentParser, metavar: str = "CONFIG.yaml") -> None:
    parser.add_argument(
        "config",
        type=Path,
        metavar=metavar,
        help="[--section.field value …] override its fields; `stellarbyte config --help` tells of them",
    )
    parser.set_defaults(takes_overrides=True)


def _tokens(text: str) -> float:
    """A number that may end in K, M, B or T."""
    scales = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    scale = scales.get(text[-1:].upper(), 1.0)
    try:
        count = float(text[:-1] if scale > 1 else text) * scale
    except ValueError:
        count = 0.0
    if not 0 < count < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0: write 300B or 3e11")
    return count


def _xla_flags_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-xla-flags",
        action="store_true",
        help="for GPUs and TPUs, set no XLA flags beside those of the environment",
    )
