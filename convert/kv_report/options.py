"""The options of `stellarbyte kv`."""

import argparse
from pathlib import Path

from stellarbyte.command_line import folder_or_bucket
from stellarbyte.kv_cache.budgets import SHAPES
from stellarbyte.kv_cache.registry import POLICIES


def kv(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte kv`."""
    parser.description = (
        "Measure on a text of yours what it costs to decode within a budget of keys and values: the perplexity behind "
        "a prompt, whether a line of the prompt is still found, memory and speed, for each budget and policy."
    )
    parser.add_argument("model", metavar="MODEL", type=folder_or_bucket, help="a run, or a Hugging Face folder")
    parser.add_argument("--data", required=True, metavar="TEXT", help="text that `prepare` reads: a file, folder, glob")
    parser.add_argument(
        "--budgets",
        default="12.5%,25%,50%",
        metavar="LIST",
        help="tokens that each head keeps, or shares of the prompt (default %(default)s)",
    )
    parser.add_argument(
        "--policies",
        metavar="LIST",
        help=f"which to compare (default: those of {','.join(POLICIES)} that go with the shape)",
    )
    parser.add_argument("--kv-shape", choices=SHAPES, default="uniform", help="how layers and heads share the budget")
    parser.add_argument("--rows", type=int, default=16, metavar="N", help="passages to measure on (default 16)")
    parser.add_argument(
        "--lines", type=int, default=1, metavar="N", help="most lines of a passage to plant, one at a time (default 1)"
    )
    parser.add_argument(
        "--row-tokens", type=int, metavar="N", help="tokens of a passage (default: the model's context)"
    )
    parser.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="those that are the prompt (default: three in four)"
    )
    parser.add_argument("--step", type=int, metavar="N", help="of a run: the checkpoint of step N (default: newest)")
    parser.add_argument("--device", metavar="NAME", help="of a folder: cpu, cuda … (default: cuda if there is one)")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE.svg", help="also draw which tokens each layer has kept"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    # These take seconds, which --help should not; and the first has to hear what the libraries of the second say.
    from stellarbyte_torch.library_words import hear_libraries

    hear_libraries("stellarbyte")
    from convert.kv_report import command

    command.run(options)
