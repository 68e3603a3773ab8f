"""Reads of a layer's tensors and of config.json how it attends, and what its feed-forward network is."""

from collections.abc import Mapping, Sequence
from typing import Any

from stellarbyte.report.architecture import Attention, FeedForward
from stellarbyte.report.names import Named
from stellarbyte.report.parameters import experts_in, experts_per_token

Tensors = Sequence[tuple[Named, tuple[int, ...]]]

# The families whose every n-th layer sees all tokens and whose others have a window, where config.json does not say n.
_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
# The families whose window counts only with use_sliding_window, which is false by default.
_ASKED_FOR = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
# The families whose class has a window if config.json has none.
_WINDOW_BY_DEFAULT = {"mistral": 4096}
_NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "groups": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "context": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"),
    "activation": ("hidden_act", "hidden_activation", "activation_function", "ffn_act_fn", "afn"),
}
# What ends a feed-forward network.
_ENDS = ("down_proj", "c_proj", "fc2", "fc_out", "4h_to_h", "w2", "output_linear")
_GATES = ("gate_proj", "gate_up_proj", "w1", "gate_and_up", "w3", "input_linear")


def field(fields: Mapping[str, Any], what: str) -> Any:
    """A size by whichever name config.json has for it; None if it has none."""
    return next((fields[name] for name in _NAMES[what] if fields.get(name) is not None), None)


def attention_of(number: int, tensors: Tensors, fields: Mapping[str, Any]) -> Attention | None:
    """How a layer attends; None if config.json and the tensors do not tell."""
    rows = {known.inner: shape for known, shape in tensors if known.part.startswith("attention_")}
    heads, hidden = field(fields, "heads"), field(fields, "hidden")
    if not rows or not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1:
        return None
    nope, rope, rank = (fields.get(name) for name in ("qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank"))
    latent = None
    if isinstance(nope, int) and isinstance(rope, int) and isinstance(rank, int):
        value_dim = fields.get("v_head_dim")
        if not isinstance(value_dim, int):
            return None
        sizes, latent = (heads, heads, nope + rope, value_dim), rank + rope
    else:
        found = _heads(rows, heads, hidden, fields)
        if found is None:
            return None
        sizes = found
    return Attention(
        *sizes,
        window=window_of(number, fields),
        positions=_positions(fields),
        qk_norm=any(known.part == "norms" and _is_qk_norm(known.inner) for known, _ in tensors),
        bias=any(inner.endswith("bias") for inner in rows),
        latent=latent,
    )


def _heads(
    rows: Mapping[str, tuple[int, ...]], heads: int, hidden: int, fields: Mapping[str, Any]
) -> tuple[int, int, int, int] | None:
    """(query heads, key/value heads, channels of a query's head, channels of a value's head), as they are left."""
    width = {part: _out(rows, part) for part in ("q", "k", "v")}
    dim = fields.get("head_dim")
    if not isinstance(dim, int):
        # A layer that has lost heads says less than the config of all.
        dim = hidden // heads if hidden % heads == 0 or not width["q"] else width["q"] // heads
    groups = field(fields, "groups")
    if fields.get("multi_query") is True and not fields.get("new_decoder_architecture"):
        groups = 1
    groups = groups if isinstance(groups, int) else heads
    if not dim or dim < 1:
        return None
    if width["q"] and width["k"] and width["v"]:
        # Qwen3-Next has a gate for each query in the same matrix: no layer has more heads than config.json says.
        return min(heads, width["q"] // dim), width["k"] // dim, dim, width["v"] // max(1, width["k"] // dim)
    return heads, groups, dim, dim


def _out(rows: Mapping[str, tuple[int, ...]], part: str) -> int | None:
    """The output channels of a projection that is a matrix of its own."""
    words = {"q": ("q_proj", "query", "wq"), "k": ("k_proj", "key", "wk"), "v": ("v_proj", "value", "wv")}[part]
    for inner, shape in rows.items():
        if len(shape) == 2 and inner.endswith(".weight") and inner.split(".")[-2] in words:
            return shape[0]
    return None


def _is_qk_norm(inner: str) -> bool:
    return any(word in ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "query_norm") for word in inner.split("."))


def window_of(number: int, fields: Mapping[str, Any]) -> int | None:
    """The number of positions that a token of a layer sees, itself included; None: all earlier ones."""
    model_type, kinds = fields.get("model_type"), fields.get("layer_types")
    window = fields.get("sliding_window", _WINDOW_BY_DEFAULT.get(str(model_type)))
    if not isinstance(window, int):
        return None
    if model_type in _ASKED_FOR and fields.get("use_sliding_window") is not True:
        return None
    if isinstance(kinds, list) and number < len(kinds):
        return window if kinds[number] == "sliding_attention" else None
    if model_type in _ASKED_FOR and model_type != "qwen3_moe":
        first = fields.get("max_window_layers", 28)
        return window if isinstance(first, int) and number >= first else None
    every = fields.get("sliding_window_pattern", _EVERY.get(str(model_type)))
    if isinstance(every, int) and every > 0:
        return window if (number + 1) % every else None
    return window


def _positions(fields: Mapping[str, Any]) -> str:
    ours = fields.get("position_embedding")
    if isinstance(ours, str):
        return ours
    if fields.get("alibi") is True or fields.get("model_type") in ("bloom", "mpt"):
        return "alibi"
    if fields.get("model_type") in ("gpt2", "gpt_neo", "gpt_bigcode", "opt", "openai-gpt"):
        return "learned"
    return "rope"


def feed_forward_of(tensors: Tensors, fields: Mapping[str, Any]) -> FeedForward | None:
    """The feed-forward network of a layer, or its experts; None if there is none."""
    dense = [(known.inner, shape) for known, shape in tensors if known.part == "feed_forward"]
    routed = [(known.inner, shape) for known, shape in tensors if known.part == "experts"]
    activation = str(field(fields, "activation") or "unknown")
    hidden = field(fields, "hidden")
    experts = experts_in(tensors)
    if experts:
        shared = [(known.inner, shape) for known, shape in tensors if known.part == "shared_experts"]
        at_work, width = experts_per_token(fields) or experts, _width(routed, hidden)
        shared_width = _width(shared, hidden) if shared else 0
        count = fields.get("num_shared_experts", fields.get("n_shared_experts", 1)) if shared else 0
        count = count if isinstance(count, int) else 1
        return FeedForward(width, _gated(routed), activation, experts, at_work, count, shared_width)
    if not dense:
        return None
    return FeedForward(_width(dense, hidden), _gated(dense), activation)


def _gated(matrices: Sequence[tuple[str, tuple[int, ...]]]) -> bool:
    return any(word in _GATES for inner, _ in matrices for word in inner.split("."))


def _width(matrices: Sequence[tuple[str, tuple[int, ...]]], hidden: Any) -> int:
    """The channels inside: the side of the matrix that ends the network which is not the model's width."""
    for inner, shape in matrices:
        if len(shape) < 2 or not any(word in inner for word in _ENDS):
            continue
        first, second = shape[-2:]
        return first if second == hidden and first != hidden else second
    return 0
