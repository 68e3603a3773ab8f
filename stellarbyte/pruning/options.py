"""The command `stellarbyte prune`: its options, and the wing that it goes to."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from stellarbyte.command_line import folder_or_bucket
from stellarbyte.errors import UserError
from stellarbyte.places import is_remote
from stellarbyte.pruning.cuts import KINDS

if TYPE_CHECKING:
    from stellarbyte.pruning.report import Report
    from stellarbyte.pruning.request import Request


def prune_options(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte prune`."""
    parser.description = (
        "Cut a trained model down to a share of its parameters or FLOPs: the heads, channels, layers or experts go "
        "that text shows to matter least for their size. A run becomes a run to train further, a folder a folder."
    )
    parser.add_argument("model", metavar="MODEL", type=folder_or_bucket, help="a run, or a folder of our own class")
    parser.add_argument("output", metavar="OUT", type=Path, help="where the pruned model goes")
    parser.add_argument(
        "--keep",
        required=True,
        metavar="SHARE[,…]",
        help="the share that is left, such as 70%%; of several each is measured, and the last is written",
    )
    parser.add_argument(
        "--what", default="heads,channels", metavar="KINDS", help=f"of {', '.join(KINDS)} (default heads,channels)"
    )
    parser.add_argument(
        "--by", choices=("parameters", "flops"), default="parameters", help="what the share counts (default parameters)"
    )
    parser.add_argument("--even", action="store_true", help="all layers alike, so that a stock export can hold them")
    parser.add_argument(
        "--multiple", type=int, default=8, metavar="N", help="widths that are left are multiples of N (default 8)"
    )
    parser.add_argument(
        "--importance",
        choices=("taylor", "wanda"),
        default="taylor",
        help="taylor: by gradients (default); wanda: by activations and weights alone",
    )
    parser.add_argument(
        "--data", metavar="TEXT", help="text of a folder, or token shards of a run (default: the run's own)"
    )
    parser.add_argument("--samples", type=int, default=64, metavar="N", help="rows to measure scores on (default 64)")
    parser.add_argument(
        "--eval-batches", type=int, metavar="N", help="batches to measure the loss on (default: all held-out text)"
    )
    parser.add_argument(
        "--recover", type=Path, metavar="CONFIG", help="train the pruned model by this config, of pretrain or finetune"
    )
    parser.add_argument(
        "--distill",
        action="store_true",
        help="with --recover: the model before the cut teaches the pruned one, as its `distill` section says",
    )
    parser.add_argument(
        "--pareto",
        type=Path,
        metavar="FILE.svg",
        help="draw perplexity over the shares of --keep, and what each layer keeps",
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="of a run: the checkpoint of step N (default: the newest)"
    )
    parser.add_argument("--device", metavar="NAME", help="of a folder: cpu, cuda … (default: cuda if there is one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from stellarbyte.files import write_text  # these need libraries that --help should not wait for
    from stellarbyte.looks.picture import check_drawable, check_folder, picture
    from stellarbyte.model_kind import model_kind, wing_of
    from stellarbyte.pruning.picture import pareto

    request = _request(options)
    kind = model_kind(options.model)
    for name, of in (("step", "run"), ("device", "model")):
        if getattr(options, name) is not None and kind != of:
            raise UserError(
                f"--{name} is for a {of if of == 'run' else 'folder'}, and {options.model} is none: leave it out"
            )
    if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
        raise UserError(f"{options.output} exists already: name a folder that is new or empty")
    inside = Path(str(options.model)).resolve() in options.output.resolve().parents
    if inside and not is_remote(options.model):
        raise UserError(f"{options.output} is in {options.model}: name a folder beside it")
    if options.recover is not None and not options.recover.is_file():
        raise UserError(f"--recover {options.recover} is no file: name a config")
    if request.pareto is not None:
        check_drawable(f"--pareto {request.pareto}")
        check_folder("--pareto", request.pareto)
    reports: list[Report] = wing_of(kind).prune(options, request)
    if request.pareto is not None:
        write_text(request.pareto, picture(pareto(str(options.model), reports)))
    if options.json:
        print(json.dumps([report.to_dict() for report in reports]))
        return
    _tell([report for report in reports if request.recovery is None or report.is_recovered])
    print(f"{options.output}: the pruned model")


def _tell(reports: "list[Report]") -> None:
    print("\n".join(report.text() for report in reports), flush=True)


def _request(options: argparse.Namespace) -> "Request":
    """The request that the options make. Raises UserError if one is out of range."""
    from stellarbyte.pruning.choice import Wanted
    from stellarbyte.pruning.recover import Recovery
    from stellarbyte.pruning.request import Request

    keeps = tuple(_share(word) for word in options.keep.split(","))
    what = tuple(options.what.split(","))
    for kind in what:
        if kind not in KINDS:
            raise UserError(f"--what {kind!r} is none of {', '.join(KINDS)}")
    for name in ("samples", "eval_batches"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least 1")
    wanted = Wanted(keeps[-1], what, options.by, options.even, options.multiple)
    if options.distill and options.recover is None:
        raise UserError("--distill is for --recover, by whose config the pruned model is trained: name one")
    recovery = None
    if options.recover is not None:
        recovery = Recovery(options.recover, options.distill, options.json, (lambda _: None) if options.json else _tell)
    return Request(keeps, wanted, options.importance, options.samples, options.eval_batches, recovery, options.pareto)


def _share(word: str) -> float:
    try:
        share = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
    except ValueError:
        raise UserError(f"--keep {word!r} is no share: write 70% or 0.7") from None
    if not 0 < share < 1:
        raise UserError(f"--keep {word} must be above 0 and below 100%: give the share that is left")
    return share
