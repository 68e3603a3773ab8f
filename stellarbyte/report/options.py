"""The command `stellarbyte report`: its options, and what it prints and writes."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stellarbyte.command_line import folder_or_bucket
from stellarbyte.errors import UserError
from stellarbyte.looks.picture import check_drawable

if TYPE_CHECKING:
    from stellarbyte.report.report import Report


def report(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte report`."""
    parser.description = (
        "Tell what a model is made of and what it costs: parameters, memory and FLOPs, by part and by layer, "
        "and on request what is measured. A model "
        "is a run, any Transformers causal model's folder, a config of ours, or a config.json alone."
    )
    parser.add_argument(
        "models", metavar="MODEL", type=folder_or_bucket, nargs="+", help="a run, a Hugging Face folder, or a config"
    )
    parser.add_argument(
        "--kv-budget",
        metavar="N",
        help="the slots of each head of a cache within a budget, as of generate: 512 or 25%%",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.html",
        help="write a page with drawings and charts, which needs no network",
    )
    parser.add_argument("--png", type=Path, metavar="DIR", help="write every chart as a PNG file into a folder")
    parser.add_argument("--lang", choices=("en", "zh"), default="en", help="of the page and the pictures (default en)")
    measured = parser.add_argument_group("what is measured")
    measured.add_argument(
        "--weights",
        action=argparse.BooleanOptionalAction,
        help="look at the numbers of all matrices: rank, outliers, distance from the first (default: up to 300 M)",
    )
    measured.add_argument("--latency", action="store_true", help="time prefill and decoding over batch and length")
    measured.add_argument(
        "--data", metavar="TEXT", help="read this file, folder or glob: losses of tokens, attention, worth of heads"
    )
    measured.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of --latency and --data: of the computation (default auto, as of generate: of a run float32, of a folder "
        "as saved)",
    )
    measured.add_argument(
        "--step", type=int, metavar="N", help="of a run: compute step N again, and tell what passed through the model"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each model, a line each")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from stellarbyte.kv_cache.settings import KVBudget
    from stellarbyte.report.making import make_reports  # these take a moment, which --help should not
    from stellarbyte.report.report import Request
    from stellarbyte.report.text import report_text

    _check_output(options.output, options.png)
    budget = None if options.kv_budget is None else KVBudget.parse(options.kv_budget)
    if options.dtype != "auto" and not options.latency and options.data is None:
        raise UserError(f"--dtype {options.dtype} is of --latency and --data: give one of them, or leave it out")
    request = Request(options.latency, options.data, options.dtype, options.step, options.weights)
    reports = make_reports(options.models, budget, request)
    if options.json:
        print("\n".join(json.dumps(found.to_dict(), allow_nan=False) for found in reports))
    else:
        print("\n\n".join(report_text(found) for found in reports))
    _write(options, reports)


def _check_output(output: Path | None, png: Path | None) -> None:
    """Refuses what would fail after the work."""
    if output is not None and output.suffix not in (".html", ".htm"):
        raise UserError(f"--output {output} has the suffix {output.suffix or 'of no format'}: end it in .html")
    if output is not None and output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file in it")
    if png is not None:
        check_drawable(f"--png {png}")
        if png.exists() and not png.is_dir():
            raise UserError(f"--png {png} is a file: name a folder, which is made where it is not there")


def _write(options: argparse.Namespace, reports: "Sequence[Report]") -> None:
    """Writes the page and the pictures that were asked for, and tells on stderr where they are."""
    if options.output is not None:
        from stellarbyte.report.page import write_page

        replaced = options.output.exists()
        write_page(options.output, reports, options.lang)
        print(f"{options.output}{' (replaced)' if replaced else ''}", file=sys.stderr)
    if options.png is not None:
        from stellarbyte.report.png import write_pictures

        paths, remark = write_pictures(options.png, reports, options.lang)
        print(f"{options.png}: {len(paths)} pictures", file=sys.stderr)
        if remark is not None:
            print(remark, file=sys.stderr)
