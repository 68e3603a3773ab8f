"""Measures the norms of gradients and updates for groups of parameters: embeddings, attention, experts and the like."""

import re
from typing import Any

import jax
import optax

from stellarbyte.figures import NORM_GROUPS

# What a parameter's dotted name holds, in the order of NORM_GROUPS: the first that fits counts.
_PATTERNS = (
    r"\.lora_[AB]$",
    r"\.(experts|shared_experts|mlp\.gate)\.",
    r"\.embed_tokens\.",
    r"^lm_head\.",
    r"norm\.|layer_scale\.|zeta$",
    r"\.self_attn\.",
    r"\.mlp\.",
)


def group_of(name: str) -> str:
    """The group of the parameter with this dotted name, one of NORM_GROUPS."""
    return next(group for group, pattern in zip(NORM_GROUPS, _PATTERNS, strict=True) if re.search(pattern, name))


def group_norms(tree: Any, kind: str) -> dict[str, jax.Array]:
    """The norm of each group of a tree like the parameters, by names such as `grad_norm_attention` for kind `grad`."""
    groups: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        groups.setdefault(group_of(jax.tree_util.keystr(path, simple=True, separator=".")), []).append(leaf)
    return {f"{kind}_norm_{name}": optax.global_norm(groups[name]) for name in NORM_GROUPS if name in groups}
