"""Named policies for what a layer keeps for its backward pass; the rest is computed again."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from stellarbyte.errors import UserError

# The name of an attention kernel's output, and of all else that its backward pass needs beside q, k and v.
ATTENTION = "attention"
_LAYER_INPUT = "layer_input"

_policies = jax.checkpoint_policies
_ATTENTION_OUTPUTS = _policies.save_only_these_names(ATTENTION)

# full keeps only a layer's input; save_attention keeps also the output of attention. dots_without_batch keeps the
# outputs of the projections; dots keeps these and attention's. offload keeps what full keeps, but in the host's memory,
# which accelerators write to and read from while they work on other layers.
POLICIES: dict[str, Callable[..., Any]] = {
    "full": _policies.nothing_saveable,
    "save_attention": _ATTENTION_OUTPUTS,
    "dots_without_batch": _policies.dots_with_no_batch_dims_saveable,
    "dots": _policies.save_from_both_policies(_policies.dots_saveable, _ATTENTION_OUTPUTS),
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
# The policies under which a layer keeps its input alone, and computes all again.
KEEPS_INPUT = ("full", "offload")


def rematerialized(layer: Callable[..., Any], policy: str, *, in_a_loop: bool) -> Callable[..., Any]:
    """`layer`, made to keep what `policy` says; "none" keeps all. Losses and gradients do not change.

    in_a_loop: whether the layer runs inside lax.scan, where XLA cannot undo the recomputation, so that prevent_cse is
        not needed.

    Raises:
        UserError: there is no such policy.
    """
    if policy == "none":
        return layer
    if policy not in POLICIES:
        raise UserError(f"training.remat {policy} is unknown: use none, {', '.join(POLICIES)}")
    if policy == "offload":
        # An input is kept where it lies, unless it gets a name inside.
        inner = layer

        def layer(x: jax.Array, inputs: Any) -> Any:
            return inner(checkpoint_name(x, _LAYER_INPUT), inputs)

    return jax.checkpoint(layer, policy=POLICIES[policy], prevent_cse=not in_a_loop)


def gathering_again(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, made to all-gather again in its backward pass, so that not all layers' gathered arrays are kept.

    The policy around it decides about everything else. If that policy recomputes the layer as well, one gathering
    serves both.
    """

    def policy(primitive: Any, *_: Any, **__: Any) -> bool:
        return primitive.name != "all_gather"

    return jax.checkpoint(function, policy=policy, prevent_cse=False)
