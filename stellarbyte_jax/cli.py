"""The command line `stellarbyte`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from stellarbyte.command_line import Parser, check_config_first, report, run_program
from stellarbyte.errors import UserError
from stellarbyte.interrupt import hold_signals
from stellarbyte.sampling_options import add_sampling_options
from stellarbyte_jax import commands
from stellarbyte_jax.machine.compile_cache import cache_settings
from stellarbyte_jax.machine.xla_flags import Platform, flag_settings, platform_here

PROGRAM = "stellarbyte"

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Without `arguments` they are the process's, which then ends with it."""
    if arguments is None:
        run_program(PROGRAM, lambda: _run(sys.argv[1:], own_process=True))
    return _run(arguments)


def _run(arguments: Sequence[str], own_process: bool = False) -> int:
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    if options.run is commands.generate and options.run_dir is None:
        options.run_dir, overrides = _run_dir_at_the_end(parser, options, overrides)
    if overrides and not hasattr(options, "config"):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    options.overrides = overrides
    if options.run is commands.pretrain:
        options.overrides = [*_distributed_by_environment(), *overrides]
    if own_process and options.run is commands.pretrain:
        _restart_with_tuned_malloc()
    _give_cpu_devices_threads()
    options.remarks = _prepare_compiler(options)
    try:
        if overrides:
            check_config_first(options.config, overrides)
        return options.run(options) or 0
    except (UserError, KeyboardInterrupt) as error:
        return report(PROGRAM, error)


def _run_dir_at_the_end(
    parser: argparse.ArgumentParser, options: argparse.Namespace, rest: list[str]
) -> tuple[Path, list[str]]:
    """RUN_DIR where it stands behind --prompt, which takes several words, or behind an option after that."""
    if rest and not rest[0].startswith("-"):
        return Path(rest[0]), rest[1:]
    if len(options.prompt) > 1:
        return Path(options.prompt.pop()), rest
    parser.error("the following arguments are required: RUN_DIR")


def _restart_with_tuned_malloc() -> None:
    if sys.platform == "linux" and not MALLOC_TUNABLES.keys() & os.environ.keys():
        hold_signals()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **MALLOC_TUNABLES})


def _give_cpu_devices_threads() -> None:
    # XLA has a thread for each CPU device; where devices wait in different collectives, all threads can be taken up for
    # ever. It reads NPROC when JAX starts.
    devices = os.environ.get("JAX_NUM_CPU_DEVICES", "")
    if devices.isdecimal() and int(devices) > 1:
        os.environ.setdefault("NPROC", str(4 * int(devices)))


def _prepare_compiler(options: argparse.Namespace) -> tuple[str, ...]:
    """Sets what JAX reads when it starts; returns what the user should see of it."""
    remarks = []
    if options.run in (commands.pretrain, commands.evaluate, commands.prune, commands.generate):
        settings, remark = cache_settings(os.environ)
        os.environ.update(settings)
        remarks.append(remark)
    platform: Platform | None = None
    if options.run is commands.pretrain:
        platform = platform_here(os.environ)
    elif options.run is commands.plan and options.compile:
        platform = "tpu"
    if platform is not None and not options.no_xla_flags:
        settings, remark = flag_settings(os.environ, platform)
        os.environ.update(settings)
        remarks.append(remark)
    return tuple(remark for remark in remarks if remark is not None)


def _distributed_by_environment() -> list[str]:
    given = ((name, os.environ.get(name)) for name in DISTRIBUTED_VARIABLES)
    return [
        f"--distributed.{name.removeprefix('JAX_').lower()}={DISTRIBUTED_VARIABLES[name].format(value)}"
        for name, value in given
        if value
    ]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description="Pretrain decoder language models in JAX.")
    groups = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int | None], summary: str) -> argparse.ArgumentParser:
        added = groups.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        added.set_defaults(run=run)
        return added

    corpus = command("corpus", commands.corpus, "write a corpus that is at hand on this machine")
    corpus.add_argument("name", choices=["stdlib"], help="stdlib: the Python standard library, one document a file")
    corpus.add_argument("output", type=Path, metavar="OUT.jsonl")
    corpus.add_argument(
        "--chat", action="store_true", help="as questions and answers made of its docstrings, in the messages format"
    )

    tokenizer = groups.add_parser("tokenizer", help="train a tokenizer", description="Train a tokenizer.")
    train = tokenizer.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "train", help="train a byte-level BPE on text", description="Train a byte-level BPE on text."
    )
    train.set_defaults(run=commands.tokenizer_train)
    train.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="files, folders or globs, as data.sources.path"
    )
    train.add_argument(
        "--field", nargs="+", help="fields of records that hold text (default: those that --template names, or text)"
    )
    train.add_argument(
        "--template",
        help=r"""how fields are put together, such as '{title}\n{text}'; \n is a line end, \t a tab, \\ a backslash, and
        {{ a brace""",
    )
    train.add_argument(
        "--on-bad-record", choices=["fail", "skip"], default="fail", help="as data.on_bad_record (default: fail)"
    )
    train.add_argument("--vocab-size", type=int, required=True, metavar="N")
    train.add_argument("--output", type=Path, required=True, metavar="DIR")
    train.add_argument(
        "--special-tokens", nargs="*", default=[], metavar="TOKEN", help="beside <|SBOS|> <|SEOS|> <|PAD|>"
    )
    train.add_argument("--force", action="store_true", help="replace another tokenizer that is in DIR")

    overriding = "[--section.field value …] override fields of the config"
    prepare = command("prepare", commands.prepare, "turn text into token shards")
    prepare.add_argument("config", type=Path, metavar="CONFIG.yaml", help=overriding)
    pretrain = command("pretrain", commands.pretrain, "train a model, or go on training it")
    pretrain.add_argument("config", type=Path, metavar="CONFIG.yaml", help=overriding)
    pretrain.add_argument(
        "--profile", metavar="START:STOP", help="trace these steps, both included, for xprof or TensorBoard"
    )
    pretrain.add_argument(
        "--dump-hlo", type=Path, metavar="DIR", help="write the train step's HLO, before and after optimisation"
    )
    pretrain.add_argument(
        "--no-memory-check", action="store_true", help="try a run that does not fit its devices by the planner"
    )
    _xla_flags_option(pretrain)

    plan = command("plan", commands.plan, "foresee memory, speed and cost of a run on a machine that is not here")
    plan.add_argument("config", type=Path, metavar="CONFIG.yaml", help=overriding)
    plan.add_argument(
        "--topology", required=True, metavar="CHIP:SIDES", help="v5e:16x16, v4, v5p, v6e alike, or h100:8x4 (4 nodes)"
    )
    plan.add_argument("--slices", type=int, metavar="N", help="so many of them (default: mesh.slices)")
    plan.add_argument("--tokens", metavar="N", help="also time and cost of so many tokens, such as 300B")
    plan.add_argument("--price", type=float, metavar="X", help="US dollars a chip and hour (default: the list price)")
    plan.add_argument(
        "--search", action="store_true", help="the best meshes, accumulation and remat for the same batch, as a table"
    )
    plan.add_argument(
        "--compile", action="store_true", help="ask the real TPU compiler as well (extra tpu; takes minutes)"
    )
    _xla_flags_option(plan)
    plan.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw the memory of each chip")
    plan.add_argument("--json", action="store_true", help="print one JSON object")

    evaluate = command("evaluate", commands.evaluate, "measure a run's model on its validation split")
    _run_dir_options(evaluate)
    _shards_option(evaluate)
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")

    prune = command("prune", commands.prune, "take out a run's least important attention heads")
    _run_dir_options(prune)
    _shards_option(prune)
    prune.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="where the pruned model goes, as a new run")
    prune.add_argument("--heads", type=int, required=True, metavar="N", help="how many to take out, over all layers")
    prune.add_argument(
        "--whole-groups", action="store_true", help="take whole groups, whose keys and values then go, too"
    )
    prune.add_argument(
        "--eval-batches", type=int, metavar="N", help="validation batches to judge by (default: the whole split)"
    )
    prune.add_argument("--json", action="store_true", help="print one JSON object, each head's importance included")

    info = command("info", commands.info, "tell what a folder is: a run, a model, an adapter, shards or a tokenizer")
    info.add_argument("path", metavar="FOLDER", type=Path)
    info.add_argument("--json", action="store_true", help="print one JSON object")

    generate = command("generate", commands.generate, "continue a prompt with a run's model")
    _run_dir_options(generate, nargs="?")
    generate.add_argument("--prompt", required=True, metavar="TEXT", nargs="+", help="the text to continue, or several")
    add_sampling_options(generate, max_new_tokens=128)
    generate.add_argument(
        "--draft", type=Path, metavar="RUN_DIR", help="a smaller model's run, to guess tokens that this one checks"
    )
    generate.add_argument(
        "--draft-tokens", type=int, default=4, metavar="N", help="guessed between two checks (default 4)"
    )
    generate.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the computation (default float32)"
    )
    generate.add_argument("--json", action="store_true", help="print one JSON object a prompt instead of streaming")
    return parser


def _xla_flags_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-xla-flags",
        action="store_true",
        help="for GPUs and TPUs, set no XLA flags beside those of the environment",
    )


def _shards_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data.shards",
        dest="shards",
        metavar="DIR",
        help="token shards to use (default: those the run was trained on, also where they were moved with it)",
    )


def _run_dir_options(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", nargs=nargs, help="the output_dir of a pretraining run"
    )
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of step N (default: the newest)")


if __name__ == "__main__":
    sys.exit(main())
