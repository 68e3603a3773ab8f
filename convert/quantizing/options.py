"""The options of `stellarbyte quantize`."""

import argparse
from pathlib import Path

from stellarbyte.command_line import folder_or_bucket

METHODS = ("rtn", "gptq", "awq", "smoothquant", "int8-dynamic")


def quantize(parser: argparse.ArgumentParser) -> None:
    """The options of `stellarbyte quantize`."""
    parser.description = (
        "Round a model's weights to few bits, calibrated on its own text, and write them as a folder that Transformers "
        "and vLLM load; but only if held-out text shows that little was lost."
    )
    parser.add_argument(
        "model", metavar="MODEL", type=folder_or_bucket, help="a run, or a Hugging Face folder: ours, or of Llama's kin"
    )
    parser.add_argument("output", metavar="OUT", type=Path, help="the folder to write")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="gptq",
        help="rtn, gptq (default) and awq round weights; smoothquant and int8-dynamic weights and activations, to int8",
    )
    parser.add_argument("--bits", type=int, metavar="N", help="bits of a weight: 2, 3, 4 or 8 (default 4)")
    parser.add_argument(
        "--group-size",
        type=_group_size,
        metavar="N",
        help="input channels that share a scale, or `row` for all of them (default 128, or fewer to divide all layers)",
    )
    parser.add_argument(
        "--symmetric",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a grid around 0 (the default); otherwise each group has a zero point",
    )
    parser.add_argument("--damping", type=float, metavar="X", help="of gptq: added to its Hessian (default 0.01)")
    parser.add_argument("--head", action="store_true", help="quantise the output head as well")
    parser.add_argument("--embeddings", action="store_true", help="quantise the embedding as well")
    parser.add_argument(
        "--data",
        metavar="TEXT",
        help="text or token shards to calibrate and measure on (default: the run's own token shards)",
    )
    parser.add_argument("--samples", type=int, metavar="N", help="rows to calibrate on (default 128)")
    parser.add_argument("--sequence-length", type=int, metavar="N", help="tokens of a row (default 512)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the choice of rows (default 0)")
    parser.add_argument(
        "--max-perplexity-increase",
        type=_share,
        default=0.03,
        metavar="PERCENT",
        help="write nothing if the perplexity of held-out text grows by more (default 3%%)",
    )
    parser.add_argument(
        "--max-context-lost",
        type=_share,
        default=0.05,
        metavar="PERCENT",
        help="write nothing if the divergence is more of what the context tells the model (default 5%%)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="write in spite of that, and replace the files of a model in OUT that no export wrote",
    )
    parser.add_argument("--step", type=int, metavar="N", help="of a run: the checkpoint of step N (default: newest)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda … (default: cuda if there is one)")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.set_defaults(run=_run)


def _group_size(word: str) -> int | str:
    if word == "row":
        return word
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is neither a number of channels nor `row`")
    return int(word)


def _share(word: str) -> float:
    number = word.removesuffix("%")
    try:
        share = float(number) / (100 if word.endswith("%") else 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no share: write 3% or 0.03") from None
    if not 0 <= share < 10 or (not word.endswith("%") and share >= 1):
        raise argparse.ArgumentTypeError(f"{word!r} is no share: write 3% or 0.03")
    return share


def _run(options: argparse.Namespace) -> int:
    from convert.quantizing import command  # its libraries take seconds, which --help should not

    return command.run(options)
