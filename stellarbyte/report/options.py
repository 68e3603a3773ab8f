"""The command `stellarbyte report`: its options, and what it prints and writes."""

import argparse
import json

from stellarbyte.command_line import folder_or_bucket


def report(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte report`."""
    parser.description = (
        "Tell what a model is made of and what it costs: parameters, memory and FLOPs, by part and by layer. A model "
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
    parser.add_argument("--json", action="store_true", help="print one JSON object for each model, a line each")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from stellarbyte.kv_cache.settings import KVBudget
    from stellarbyte.report.making import make_reports  # these take a moment, which --help should not
    from stellarbyte.report.text import report_text

    budget = None if options.kv_budget is None else KVBudget.parse(options.kv_budget)
    reports = make_reports(options.models, budget)
    if options.json:
        print("\n".join(json.dumps(found.to_dict(), allow_nan=False) for found in reports))
        return
    print("\n\n".join(report_text(found) for found in reports))
