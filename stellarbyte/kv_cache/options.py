"""The options of commands that decode with a pruned cache, the same in JAX and in PyTorch."""

import argparse

from stellarbyte.errors import UserError
from stellarbyte.kv_cache.budgets import SHAPES, check_shape
from stellarbyte.kv_cache.registry import POLICIES, policy
from stellarbyte.kv_cache.settings import KVBudget, KVPruning

DEFAULT_POLICY, DEFAULT_SHAPE = "snap", "uniform"


def add_pruning_options(parser: argparse.ArgumentParser) -> None:
    """Adds what a pruned cache is set by."""
    parser.add_argument(
        "--kv-budget",
        metavar="N|P%",
        help="keep keys and values of so many tokens in each head, or of P%% of prompt and answer (default: of all)",
    )
    parser.add_argument(
        "--kv-policy",
        metavar="NAME",
        help=f"which tokens to keep: {', '.join(POLICIES)} (default {DEFAULT_POLICY})",
    )
    parser.add_argument(
        "--kv-shape",
        metavar="NAME",
        help=f"how layers and heads share the budget: {', '.join(SHAPES)} (default {DEFAULT_SHAPE})",
    )


def pruning_of(options: argparse.Namespace) -> KVPruning | None:
    """What the options say of a pruned cache; None: nothing is dropped. Raises UserError: a value is of no use."""
    if options.kv_budget is None:
        for name in ("kv_policy", "kv_shape"):
            if getattr(options, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} {getattr(options, name)} needs --kv-budget, which is not given: give both")
        return None
    shape = options.kv_shape or DEFAULT_SHAPE
    if shape not in SHAPES:
        raise UserError(f"--kv-shape {shape} is unknown: use {', '.join(SHAPES)}")
    chosen = policy(options.kv_policy or DEFAULT_POLICY)
    check_shape(shape, chosen)
    return KVPruning(KVBudget.parse(options.kv_budget), chosen, shape)
