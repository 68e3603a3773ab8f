"""Tells by the name of a tensor what it is: its layer, its part of the model, and whether it is a parameter at all."""

import re
from dataclasses import dataclass
from functools import cache

# The layers of the families that are met have one of these words before their number.
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|decoder_layers)\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"(?:^|\.)experts\.(\d+)\.")

# Tensors that files hold and optimizers do not see: rotary tables, causal masks, and the balance of a router.
_BUFFER = re.compile(
    r"(?:rotary_emb\.(?:inv_freq|cos_cached|sin_cached)|rotary_pos_emb\.inv_freq|attn\.(?:masked_)?bias|"
    r"attention\.(?:masked_)?bias|position_ids|e_score_correction_bias|local_tokens_per_expert)$"
)

# What stands for one matrix in files of quantised models, beside its codes.
_SCALE = re.compile(
    r"^(?P<stem>.+?)[._](?:scales|qzeros|g_idx|absmax|quant_map|nested_absmax|nested_quant_map|"
    r"quant_state\.\w+|weight_scale|weight_scale_inv|weight_scale_2|weight_zero_point|weight_shape|weight_g_idx|"
    r"input_scale|output_scale|SCB|weight_format)$"
)

_ROUTER = {"gate", "router", "shared_expert_gate", "wg"}
# Granite's experts are one tensor, without the word.
_FUSED_EXPERTS = re.compile(r"block_sparse_moe\.(?:input|output)_linear\.")
_SHARED = re.compile(r"shared_expert|shared_mlp")
_NORM = re.compile(r"norm|(?:^|\.)ln_|(?:^|\.)ln\d|layer_?norm")
_ATTENTION = {"attn", "self_attn", "attention", "self_attention", "self_attention_layer"}
_FEED_FORWARD = {"mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "fc1", "fc2"}

# The last words of a module's name -> its part.
_IN_ATTENTION = {
    **dict.fromkeys(("q_proj", "query", "wq", "q", "q_a_proj", "q_b_proj"), "attention_q"),
    **dict.fromkeys(("k_proj", "key", "wk", "k"), "attention_k"),
    **dict.fromkeys(("v_proj", "value", "wv", "v"), "attention_v"),
    **dict.fromkeys(("o_proj", "out_proj", "dense", "c_proj", "wo", "o", "proj"), "attention_o"),
    **dict.fromkeys(
        ("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv", "wqkv", "kv_a_proj_with_mqa", "kv_b_proj", "kv_proj"),
        "attention_qkv",
    ),
}
_OUTSIDE = {
    **dict.fromkeys(("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"), "embedding"),
    **dict.fromkeys(("wpe", "embed_positions", "position_embeddings", "zeta"), "positions"),
    **dict.fromkeys(("lm_head", "embed_out", "output"), "head"),
}


@dataclass(frozen=True)
class Named:
    """What a tensor's name tells.

    Attributes:
        layer: the number of its layer; None outside the layers.
        inner: its name within the layer, or the whole name; an expert's number is {expert} there.
        part: one of parameters.PARTS.
        expert: the number of its expert, where experts are stored one by one.
    """

    layer: int | None
    inner: str
    part: str
    expert: int | None = None


def is_buffer(name: str, dimensions: int) -> bool:
    """Whether a tensor is none that is trained. GPT-2's attn.bias is a mask of four dimensions, others' a bias."""
    if name.endswith(("attn.bias", "attention.bias")):
        return dimensions > 1
    return _BUFFER.search(name) is not None


def stem_of_scale(name: str) -> str | None:
    """The module whose quantised weight a scale, zero point or the like belongs to; None: it is no such tensor."""
    found = _SCALE.match(name)
    return None if found is None else found["stem"]


@cache
def named(name: str) -> Named:
    """What a parameter is by its name, in the words of Llama, GPT-2, GPT-NeoX, Falcon, Phi, DeepSeek and their like."""
    found = _LAYER.search(name)
    tower = "vision" in name or "visual" in name or "audio" in name
    if found is None or tower:
        return Named(None, name, "other" if tower else _outside(name))
    inner = found[2]
    expert = _EXPERT.search(inner)
    if expert is not None:
        inner = f"{inner[: expert.start(1)]}{{expert}}{inner[expert.end(1) :]}"
    return Named(int(found[1]), inner, _inside(inner), None if expert is None else int(expert[1]))


def _outside(name: str) -> str:
    if "lora_" in name:
        return "adapters"
    words = name.split(".")
    if words[-2:] == ["embeddings", "weight"]:  # Mamba's; of others it is the name of a group
        return "embedding"
    part = next((_OUTSIDE[word] for word in reversed(words) if word in _OUTSIDE), None)
    return part or ("norms" if _NORM.search(name) else "other")


def _inside(inner: str) -> str:
    words = inner.split(".")
    if "lora_" in inner:
        return "adapters"
    if "layer_scale" in inner:
        return "layer_scale"
    if _NORM.search(inner):
        return "norms"
    if any(word in _ROUTER for word in words):
        return "router"
    if _SHARED.search(inner):
        return "shared_experts"
    if "experts" in words or _FUSED_EXPERTS.search(inner):
        return "experts"
    if any(word in _ATTENTION for word in words):
        return next((_IN_ATTENTION[word] for word in reversed(words) if word in _IN_ATTENTION), "other")
    return "feed_forward" if any(word in _FEED_FORWARD for word in words) else "other"
