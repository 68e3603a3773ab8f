"""The options of `stellarbyte evaluate`, and the wing that it goes to."""

import argparse
import os

from stellarbyte.command_line import folder_or_bucket
from stellarbyte.kv_cache.options import add_pruning_options

# Local files are all that an evaluation reads: without the first three the libraries would ask a server about some of
# them. With the last lm-eval computes the errors of scores in this process, which has threads that a fork would lose.
_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "DISABLE_MULTIPROC")


def evaluate(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte evaluate`."""
    parser.description = (
        "Measure a model. Of a run alone: loss, perplexity, accuracy and bits per byte on its own validation split. "
        "With --data, of a run or of a Hugging Face folder: the same and the calibration error on text of yours; with "
        "--tasks the scores of tasks."
    )
    parser.add_argument("model", type=folder_or_bucket, metavar="MODEL", help="a run, or a causal model's folder")
    text = parser.add_argument_group("on text of yours")
    text.add_argument(
        "--data",
        nargs="+",
        default=[],
        action="extend",
        metavar="[NAME=]TEXT",
        help="files, folders or globs that `prepare` reads; each is a domain of its own",
    )
    text.add_argument("--text-field", default="text", metavar="FIELD", help="of records: the text (default text)")
    text.add_argument(
        "--domain-field", metavar="FIELD", help="of records: the domain (default: a domain for each TEXT)"
    )
    text.add_argument(
        "--window", type=int, metavar="N", help="tokens read at once (default: the model's context, at most 2048)"
    )
    text.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="tokens scored in a window; fewer than --window give each of them more context (default: the window)",
    )
    text.add_argument(
        "--compare",
        type=folder_or_bucket,
        metavar="OTHER",
        help="another run or folder: whether it differs in bits per byte, by a paired bootstrap",
    )
    text.add_argument(
        "--compare-step", type=int, metavar="N", help="of a run: the checkpoint of OTHER (default: newest)"
    )
    tasks = parser.add_argument_group("on tasks")
    tasks.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        action="extend",
        metavar="PATH",
        help="files of multiple-choice questions (.jsonl), or tasks of lm-eval (extra eval): a YAML, a folder of them",
    )
    tasks.add_argument(
        "--few-shot",
        type=int,
        metavar="N",
        help="of lm-eval's: examples before a question (default: as it says)",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="the first N documents of a TEXT, or questions of a task"
    )
    parser.add_argument(
        "--batch-tokens",
        type=int,
        default=4096,
        metavar="N",
        help="tokens in a batch, of one window or more (default 4096)",
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="of a run: the checkpoint of step N (default: the newest)"
    )
    parser.add_argument("--ema", action="store_true", help="of a run: the average of the weights (training.ema_decay)")
    parser.add_argument(
        "--data.shards",
        dest="shards",
        metavar="DIR",
        help="of a run: token shards of its validation split (default: those it was trained on, also where they were "
        "moved with it)",
    )
    add_pruning_options(parser)
    parser.add_argument("--device", metavar="NAME", help="of a folder: cpu, cuda … (default: cuda if there is one)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="with --data or --tasks: of the computation (default auto: of a run float32, of a folder as saved)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    for name in _VARIABLES:
        os.environ.setdefault(name, "1")
    from stellarbyte.evaluation import command

    command.run(options)
