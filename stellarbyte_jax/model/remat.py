"""What a layer keeps for its backward pass, by named policies; the rest is worked out again."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from stellarbyte.errors import UserError

# The name of what an attention kernel puts out, and of all else that its backward pass needs beside q, k and v.
ATTENTION = "attention"
_LAYER_INPUT = "layer_input"

_policies = jax.checkpoint_policies
_ATTENTION_OUTPUTS = _policies.save_only_these_names(ATTENTION)

# full keeps a layer's input alone, save_attention also what attention puts out; dots_without_batch what the
# projections put out; dots that and what attention does. offload keeps what full does, in the memory of the host,
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


def rematerialized(layer: Callable[..., Any], policy: str, *, in_a_loop: bool) -> Callable[..., Any]:
    """`layer`, which keeps what `policy` says; "none" keeps all.

    Losses and gradients stay the same. In a loop nothing has to keep the compiler from undoing it.

    Raises:
        UserError: no such policy.
    """
    if policy == "none":
        return layer
    if policy not in POLICIES:
        raise UserError(f"training.remat {policy} is unknown: use none, {', '.join(POLICIES)}")
    if policy == "offload":
        # What comes in is kept where it is, unless it has a name inside.
        inner = layer

        def layer(x: jax.Array, inputs: Any) -> Any:
            return inner(checkpoint_name(x, _LAYER_INPUT), inputs)

    return jax.checkpoint(layer, policy=POLICIES[policy], prevent_cse=not in_a_loop)


def gathering_again(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose backward pass gathers again what other devices have: kept, all layers' would be there at once.

    Whatever else the policy around it would keep is kept. Where that works the layer out again too, one gathering
    serves both.
    """

    def policy(primitive: Any, *_: Any, **__: Any) -> bool:
        return primitive.name != "all_gather"

    return jax.checkpoint(function, policy=policy, prevent_cse=False)
