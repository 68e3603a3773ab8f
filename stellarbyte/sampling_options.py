"""The options of commands that generate text, the same in JAX and in PyTorch."""

import argparse

from stellarbyte.sampling import Sampling


def add_sampling_options(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """Adds what a draw is set by, how long an answer may be, and where it ends."""
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X", help="0 (default): the likeliest token")
    parser.add_argument("--top-k", type=int, metavar="N", help="sample from the N likeliest (default: from all)")
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample from the likeliest that reach probability P (default: from all)",
    )
    parser.add_argument(
        "--min-p", type=float, metavar="P", help="sample from those at least P times as likely as the likeliest"
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1 (default), tokens of the prompt and the text so far are less likely",
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help=f"stop after N tokens (default {max_new_tokens}), or where the model ends",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="for sampling (default 0)")


def sampling_of(options: argparse.Namespace) -> Sampling:
    """What the options say of a draw. Raises UserError: a value is out of range."""
    return Sampling(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
    )
