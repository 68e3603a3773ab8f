"""The whole StellarByte architecture in PyTorch, to be read top to bottom, as a Hugging Face model.

Shape suffixes: B batch, T query time, S key time, D hidden, F feed-forward, N query heads, K key/value heads,
G = N / K, H head size, E experts, L layers, M = B · T rows, k experts of a token.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.integrations import use_experts_implementation, use_kernel_forward_from_hub
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import can_return_tuple
from transformers.utils.generic import maybe_autocast, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_stellarbyte import XPOS_SMALLEST_ZETA, ByteConfig, contradiction

# Transformers 5.24 renamed past_key_values to `cache`.
CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"

# The keywords beyond a forward's own parameters that Transformers, PEFT, TRL and servers pass through a model. Those of
# the attention function in use are accepted as well; any other is a mistake.
KEYWORDS = {
    *("num_items_in_batch", "shift_labels", "ignore_index"),  # for the loss
    *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
    *("position_ids", "use_cache"),  # passed on by a layer to its attention
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "is_causal"),  # for attention kernels
    # For continuous batching; before 5.24 only that used the name `cache`.
    *("cache", "read_index", "write_index", "block_table", "logits_indices", "logits_processor_args"),
    *("attention_instances", "forward_batch"),  # for vLLM's and SGLang's attention
    *("debug_io", "debug_io_dir", "prune_layers"),  # for Transformers' model debugging
    *("seq_idx", "token_type_ids", "cache_position"),  # not needed: state-space packing, segments, old positions
}

# An attribute of projections: the factor of initializer_range with which their weights start (1 without it).
INITIAL_GAIN = "initial_gain"


def refuse_unknown(kwargs: Mapping[str, Any], module: Any) -> None:
    """Raises TypeError for the first keyword that nothing here reads, so that a misspelt one is never ignored."""
    for name in (name for name in kwargs if name not in KEYWORDS):
        attention: Any = ALL_ATTENTION_FUNCTIONS.get(module.config._attn_implementation, eager_attention_forward)
        if name not in inspect.signature(attention).parameters:
            where = f"{type(module).__name__}.forward()"
            raise TypeError(f"{where} got an unexpected keyword argument {name!r}: correct it, or leave it out")


def with_either_cache_name(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a forward with a parameter past_key_values also take it as `cache`, Transformers' present name for it."""

    @wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.pop("cache", None)
        if cache is not None and kwargs.get("past_key_values") is not None:
            raise ValueError("past_key_values and cache are two names of one thing: give only one")
        if cache is not None:  # before 5.24 the cache of continuous batching is passed on to its own attention
            kwargs["past_key_values" if CACHE == "cache" or isinstance(cache, Cache) else "cache"] = cache
        return forward(self, *args, **kwargs)

    return wrapper


@use_kernel_forward_from_hub("RMSNorm")
class ByteRMSNorm(nn.Module):
    """x / rms(x) · weight, with float32 statistics; the weight is multiplied after the cast back, as in Llama."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalises [..., D] and keeps its dtype."""
        x = hidden_states.float()
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * normed.to(hidden_states.dtype)


class ByteRotaryEmbedding(nn.Module):
    """Rotary positions, with XPos decay if the config asks for it (Sun et al. 2022, arXiv:2212.10554).

    XPos multiplies query n by zeta^((n - r) / base) and key m by zeta^((r - m) / base): the score carries
    zeta^((n - m) / base) and depends on n - m alone. The reference r = max_position_embeddings / 2 is fixed, so a
    cached key is final. The factor scales both channels of a pair alike and is therefore folded into cos and sin.
    """

    def __init__(self, config: ByteConfig) -> None:
        super().__init__()
        self.config = config
        self.rope_type = config.rope_scaling["rope_type"] if config.rope_scaling else "default"
        inv_freq, self.attention_scaling = self.initial_inv_freq(config)
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        if config.position_embedding == "xpos":
            zeta = self.initial_zeta(config)
            self.zeta = nn.Parameter(zeta) if config.xpos_learnable else nn.Buffer(zeta, persistent=False)
            self.zeta_is_there = not zeta.is_meta

    @staticmethod
    def initial_inv_freq(config: ByteConfig) -> tuple[Tensor, float]:
        """The frequencies rope_theta^(-2i / H), float32 [H / 2], with rope_scaling; and yarn's factor on cos, sin."""
        if config.rope_scaling:
            return ROPE_INIT_FUNCTIONS[config.rope_scaling["rope_type"]](config)
        assert config.head_dim is not None
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        return 1.0 / (config.rope_theta**exponent), 1.0

    @staticmethod
    def initial_zeta(config: ByteConfig) -> Tensor:
        """The initial zeta, (2i / H + 0.4) / 1.4, float32 [H / 2]."""
        assert config.head_dim is not None
        return (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim + 0.4) / 1.4

    def forward(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """The cos and sin of position_ids [B, T], with XPos also the keys': float32 [2 or 4, B, T, H] on x's device.

        They are one tensor because reentrant checkpointing passes zeta's gradient through a tensor, but not a tuple.
        """
        position_BT1 = position_ids[..., None].float()
        with torch.no_grad():
            angle = position_BT1 * self.frequencies(position_ids).to(x.device)
            angle = torch.cat((angle, angle), dim=-1)
            cos, sin = angle.cos(), angle.sin()
            if self.attention_scaling != 1.0:
                cos, sin = cos * self.attention_scaling, sin * self.attention_scaling
        if self.config.position_embedding == "rope":
            return torch.stack((cos, sin))

        reference = self.config.max_position_embeddings / 2
        exponent = (position_BT1 - reference) / self.config.xpos_scale_base * self.bounded_zeta().log()
        exponent = torch.cat((exponent, exponent), dim=-1)
        query_factor, key_factor = exponent.exp(), (-exponent).exp()
        return torch.stack((cos * query_factor, sin * query_factor, cos * key_factor, sin * key_factor))

    def frequencies(self, position_ids: Tensor) -> Tensor:
        """The frequencies, float32 [H / 2]; with rope_scaling dynamic they depend on this call's last position."""
        if self.rope_type != "dynamic":
            return self.inv_freq
        seq_len = position_ids.max() + 1
        grown, _ = ROPE_INIT_FUNCTIONS["dynamic"](self.config, self.inv_freq.device, seq_len)
        return torch.where(seq_len > self.config.max_position_embeddings, grown, self.inv_freq)

    def bounded_zeta(self) -> Tensor:
        """Zeta [H / 2], clamped to [zeta_0, 1]; the gradient ignores the clamp, so that a clamped value can return."""
        if not self.config.xpos_learnable:
            return self.zeta
        return self.zeta + (self.zeta.clamp(XPOS_SMALLEST_ZETA, 1.0) - self.zeta).detach()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ByteRotaryEmbedding":
        # model.to(torch.bfloat16) must not round frequencies to 8 bits: position 300 would get a wrong angle.
        def move_but_keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move_but_keep_float32, recurse)
        # model.to_empty(device=…) leaves arbitrary values in the buffers, and no file holds them.
        if not self.inv_freq.is_meta:
            self.fill_buffers()
        return self

    @torch.no_grad()
    def fill_buffers(self) -> None:
        """Fills the buffers with the config's frequencies, and with zeta if that is not learnt."""
        with torch.device("cpu"):  # new tensors might otherwise be created on "meta"
            self.inv_freq.copy_(self.initial_inv_freq(self.config)[0])
            if "zeta" in self._buffers:
                self.zeta.copy_(self.initial_zeta(self.config))

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.zeta_is_there = True


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotates the pairs (i, i + H / 2) of x [B, N, T, H] by (cos, sin), in float32 or wider; the dtype of x stays."""
    cos, sin = rotation[:, :, None]
    first, second = x.chunk(2, dim=-1)
    # cos and sin are float32, so a narrower x is promoted; a float64 model keeps its precision.
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def eager_attention_forward(
    module: "ByteAttention",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,  # noqa: ARG001 - the attention interface's signature
) -> tuple[Tensor, Tensor]:
    """Plain attention that also returns its weights: output [B, T, N, H], weights [B, N, T, S].

    query: [B, N, T, H]. key, value: [B, K, S, H]. attention_mask: [B, 1, T, S], which is added to the scores.
    """
    # Each key/value head is repeated for every query head that reads it.
    key_BNSH, value_BNSH = (x.repeat_interleave(module.num_key_value_groups, dim=1) for x in (key, value))
    scores_BNTS = torch.matmul(query, key_BNSH.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores_BNTS = scores_BNTS + attention_mask
    weights_BNTS = nn.functional.softmax(scores_BNTS, dim=-1, dtype=torch.float32).to(query.dtype)
    weights_BNTS = nn.functional.dropout(weights_BNTS, p=dropout, training=module.training)
    return torch.matmul(weights_BNTS, value_BNSH).transpose(1, 2).contiguous(), weights_BNTS


def mask_for(implementation: str, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A caller's mask [B, 1, T, S], bool or additive, in the form that `implementation` reads; or raises ValueError."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"attention_mask [B, 1, T, S] is {mask.dtype}: give bool, True where seen, or floats to add")
    if "flash" in implementation or "flex" in implementation:
        raise ValueError(f"{implementation} follows no attention_mask [B, 1, T, S]: load the model with sdpa or eager")
    if mask.dtype == torch.bool and "sdpa" not in implementation:  # the others add the mask
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    return mask


class ByteAttention(nn.Module):
    """Causal grouped-query attention: G query heads, less those that are pruned, read each key/value head."""

    def __init__(self, config: ByteConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.sliding_window = config.sliding_window
        self.is_causal = True
        self.set_heads(config.pruned_heads[layer_idx] if config.pruned_heads else ())

        D = config.hidden_size
        query_size, kv_size = (len(heads) * self.head_dim for heads in self.heads)
        self.q_proj = nn.Linear(D, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(D, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(D, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, D, bias=config.attention_bias)
        self.has_qk_norm = config.qk_norm
        if self.has_qk_norm:
            self.q_norm = ByteRMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = ByteRMSNorm(self.head_dim, config.rms_norm_eps)
        for projection, gain in zip((self.v_proj, self.o_proj), config.initial_gains, strict=True):
            setattr(projection, INITIAL_GAIN, gain)

    def set_heads(self, gone: Iterable[int]) -> None:
        """Sets up the heads that remain without the query heads `gone`; a key/value head that none reads goes too."""
        assert self.config.num_key_value_heads is not None
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        queries = [head for head in range(self.config.num_attention_heads) if head not in gone]
        keys = sorted({head // group for head in queries})
        self.heads = (queries, keys)
        # The remaining key/value head that each query head reads. They are copied unless all groups have the same size.
        self.kv_slots = [keys.index(head // group) for head in queries]
        size = len(queries) // len(keys)
        self.is_regular = self.kv_slots == [position // size for position in range(len(queries))]
        self.num_key_value_groups = size if self.is_regular else 1

    @torch.no_grad()
    def prune_heads(self, gone: Iterable[int]) -> None:
        """Cuts the projections down to the heads that remain; `gone` includes the heads that were pruned before."""
        projections = ((self.q_proj, 0, 0), (self.k_proj, 0, 1), (self.v_proj, 0, 1), (self.o_proj, 1, 0))
        before, device = self.heads, self.q_proj.weight.device
        self.set_heads(gone)
        for projection, dim, which in projections:
            slots = torch.tensor([before[which].index(head) for head in self.heads[which]], device=device)
            channels = (slots[:, None] * self.head_dim + torch.arange(self.head_dim, device=device)).flatten()
            weight = projection.weight
            projection.weight = nn.Parameter(weight.index_select(dim, channels), requires_grad=weight.requires_grad)
            if dim == 0 and (bias := projection.bias) is not None:
                projection.bias = nn.Parameter(bias.index_select(0, channels), requires_grad=bias.requires_grad)
            projection.out_features, projection.in_features = projection.weight.shape

    @with_either_cache_name
    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from hidden_states [B, T, D]: the output [B, T, D], and weights [B, N, T, S] with eager attention."""
        refuse_unknown(kwargs, self)
        B, T, _ = hidden_states.shape
        head_shape = (B, T, -1, self.head_dim)

        q_BTNH, k_BSKH = (proj(hidden_states).view(head_shape) for proj in (self.q_proj, self.k_proj))
        if self.has_qk_norm:
            q_BTNH, k_BSKH = self.q_norm(q_BTNH), self.k_norm(k_BSKH)
        q_BNTH, k_BKSH = q_BTNH.transpose(1, 2), k_BSKH.transpose(1, 2)
        v_BKSH = self.v_proj(hidden_states).view(head_shape).transpose(1, 2)
        if position_embeddings is not None:
            q_BNTH, k_BKSH = rotate(q_BNTH, position_embeddings[:2]), rotate(k_BKSH, position_embeddings[-2:])

        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        if attend := getattr(past_key_values, "attend", None):
            attention = partial(attend, attention)  # a pruned cache: it maps the mask to the keys that it still holds
        elif past_key_values is not None:
            k_BKSH, v_BKSH = past_key_values.update(k_BKSH, v_BKSH, self.layer_idx, kwargs=kwargs)
            if self.sliding_window == 1 and isinstance(past_key_values, Cache):
                # Transformers' sliding cache keeps the last W - 1 slots, [-(W - 1):], but with W = 1 that keeps all.
                k_BKSH, v_BKSH = k_BKSH[:, :, -T:], v_BKSH[:, :, -T:]
                attention_mask = attention_mask[..., -T:] if isinstance(attention_mask, Tensor) else attention_mask
        if not self.is_regular and not attend:
            k_BKSH, v_BKSH = (torch.stack([x[:, slot] for slot in self.kv_slots], dim=1) for x in (k_BKSH, v_BKSH))

        if isinstance(attention_mask, Tensor) and attention_mask.ndim == 4:
            attention_mask = mask_for(self.config._attn_implementation, attention_mask, q_BNTH.dtype)
        dropout = self.attention_dropout if self.training else 0.0
        options = {"dropout": dropout, "scaling": self.scaling, "sliding_window": self.sliding_window}
        output, weights = attention(self, q_BNTH, k_BKSH, v_BKSH, attention_mask, **options, **kwargs)
        return self.o_proj(output.reshape(B, T, -1).contiguous()), weights


class ByteMLP(nn.Module):
    """Gated feed-forward, down(act(gate(x)) · up(x)): SwiGLU if hidden_act is silu (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ByteConfig, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]
        inner, outer = config.initial_gains
        for projection, gain in ((self.gate_proj, inner), (self.up_proj, inner), (self.down_proj, outer)):
            setattr(projection, INITIAL_GAIN, gain)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Applies the feed-forward to [B, T, D]."""
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


@use_experts_implementation
class ByteExperts(nn.Module):
    """The gated feed-forward matrices of all experts, stacked along E with gate before up, as in Transformers 5.

    `experts_implementation` chooses how they are multiplied. The default, grouped_mm, is one grouped matmul.
    """

    def __init__(self, config: ByteConfig) -> None:
        super().__init__()
        assert config.moe_intermediate_size is not None
        self.num_experts = config.num_experts
        self.hidden_dim = config.hidden_size
        self.intermediate_dim = config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * self.intermediate_dim, self.hidden_dim))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, self.hidden_dim, self.intermediate_dim))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sums each row's k weighted expert outputs, [M, D] -> [M, D]. This is `eager`: one expert after another."""
        experts = [partial(self.apply_expert, expert) for expert in range(self.num_experts)]
        return sum_of_experts(experts, hidden_states, top_k_index, top_k_weights)

    def apply_expert(self, expert: int, x: Tensor) -> Tensor:
        """One expert's feed-forward of [1, rows, D]."""
        gate, up = nn.functional.linear(x, self.gate_up_proj[expert]).chunk(2, dim=-1)
        return nn.functional.linear(self.act_fn(gate) * up, self.down_proj[expert])


def sum_of_experts(experts: Any, x_MD: Tensor, experts_Mk: Tensor, weights_Mk: Tensor) -> Tensor:
    """Each row's weighted sum of the outputs of its k experts, [M, D]; `experts` is a sequence of functions."""
    output = torch.zeros_like(x_MD)
    # Another device of the expert-parallel group computes those whose number is the number of experts.
    for expert in experts_Mk[experts_Mk < len(experts)].unique().tolist():
        rows, choices = torch.where(experts_Mk == expert)
        y = experts[expert](x_MD[None, rows])[0]  # of rank 3, as int8 activations have a scale for each token there
        output.index_add_(0, rows, (y * weights_Mk[rows, choices, None]).to(output.dtype))
    return output


class ByteTopKRouter(nn.Module):
    """Chooses the highest-scoring experts for each token, in float32 whatever the model's dtype."""

    def __init__(self, config: ByteConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Routes [M, D]: logits [M, E], and the weights [M, k] and indices [M, k] of the chosen experts, best first."""
        with maybe_autocast(hidden_states.device.type, enabled=False):
            logits = nn.functional.linear(hidden_states.float(), self.weight.float())
        experts = choose_experts(logits, self.top_k)
        if self.norm_topk_prob:
            weights = logits.gather(-1, experts).softmax(dim=-1)  # with k = 1 the weight is exactly 1, its gradient 0
        else:
            weights = logits.softmax(dim=-1).gather(-1, experts)
        return logits, weights, experts


def choose_experts(logits: Tensor, top_k: int) -> Tensor:
    """Indices [..., k] of the highest logits [..., E], best first; of equal ones the lower index, unlike torch.topk."""
    return logits.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]


class ByteSparseMoeBlock(nn.Module):
    """Σ weight · expert(x) over each token's experts, plus the shared experts' output."""

    def __init__(self, config: ByteConfig) -> None:
        super().__init__()
        assert config.moe_intermediate_size is not None
        # Libraries quantise linear layers and no stacks of them, so compressed-tensors' folders have each expert apart.
        sizes = [config.moe_intermediate_size] * config.num_experts if config.is_compressed else []
        self.experts = nn.ModuleList(ByteMLP(config, size) for size in sizes) if sizes else ByteExperts(config)
        self.gate = ByteTopKRouter(config)
        self.capacity_factor = config.moe_capacity_factor
        shared_size = config.num_shared_experts * config.moe_intermediate_size
        self.shared_experts = ByteMLP(config, shared_size) if shared_size else None

    def forward(self, hidden_states: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Applies the experts to [B, T, D]. token_mask: [B, T], 0 for padding, which takes up no expert's capacity."""
        x_MD = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights_Mk, experts_Mk = self.gate(x_MD)
        if self.training and self.capacity_factor is not None:
            experts_BTk = experts_Mk.unflatten(0, hidden_states.shape[:2])
            weights_Mk = weights_Mk * self.has_place(experts_BTk, token_mask).flatten(0, 1)
        apart = partial(sum_of_experts, self.experts)
        experts: Any = apart if isinstance(self.experts, nn.ModuleList) else self.experts
        output = experts(x_MD, experts_Mk, weights_Mk).view(hidden_states.shape)
        return output if self.shared_experts is None else output + self.shared_experts(hidden_states)

    def has_place(self, experts_BTk: Tensor, token_mask: Tensor | None) -> Tensor:
        """Whether an expert serves each choice, bool [B, T, k]: it takes a row's first ceil(factor · k · T / E)."""
        assert self.capacity_factor is not None
        (B, T, k), E = experts_BTk.shape, len(self.gate.weight)
        is_chosen = experts_BTk[..., None] == torch.arange(E, device=experts_BTk.device)
        if token_mask is not None:
            is_chosen = is_chosen & token_mask.bool()[:, :, None, None]
        place = is_chosen.view(B, T * k, E).cumsum(dim=1).view(B, T, k, E).gather(-1, experts_BTk[..., None])[..., 0]
        return place <= math.ceil(self.capacity_factor * k * T / E)


def mask_of_tokens(attention_mask: Any, length: int) -> Tensor | None:
    """The mask [B, T] of the last `length` tokens, 1 if real, cut from an attention_mask [B, S]; None without one."""
    return attention_mask[:, -length:] if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2 else None


def router_losses(
    router_logits: tuple[Tensor, ...], top_k: int, batch_size: int, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The balance loss [B] and z-loss [B] of each layer's logits [B · T, E], and the number of tokens [B] in each row.

    Only tokens that attention_mask [B, S >= T] calls real count. balance: E · Σ_i f_i P_i, where f_i is the share of a
    row's tokens that chose expert i (the shares sum to k) and P_i its mean probability (Fedus et al. 2021,
    arXiv:2101.03961). z: the mean of logsumexp(logits)² (Zoph et al. 2022, arXiv:2202.08906). Layers are averaged.
    """
    device = router_logits[0].device
    logits_LBTE = torch.stack([logits.to(device) for logits in router_logits]).unflatten(1, (batch_size, -1))
    _, B, T, E = logits_LBTE.shape
    token_mask = mask_of_tokens(attention_mask, T)
    counted_BT = logits_LBTE.new_ones(B, T) if token_mask is None else token_mask.to(logits_LBTE)
    tokens_B = counted_BT.sum(dim=1)

    chosen_LBTE = torch.zeros_like(logits_LBTE).scatter_(-1, choose_experts(logits_LBTE.detach(), top_k), 1.0)
    share_BT = counted_BT / tokens_B[:, None].clamp(min=1)
    f_LBE = (chosen_LBTE * share_BT[..., None]).sum(dim=2)
    P_LBE = (logits_LBTE.softmax(dim=-1) * share_BT[..., None]).sum(dim=2)
    balance_B = E * (f_LBE * P_LBE).sum(dim=-1).mean(dim=0)
    z_B = (logits_LBTE.logsumexp(dim=-1).square().mean(dim=0) * share_BT).sum(dim=1)
    return balance_B, z_B, tokens_B


class ByteLayerScale(nn.Module):
    """A gain for each channel of a branch (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, hidden_size: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.weight = nn.Parameter(torch.full((hidden_size,), float(initial)))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Scales the channels of [..., D]."""
        return hidden_states * self.weight


class ByteDecoderLayer(GradientCheckpointingLayer):
    """Adds attention f and feed-forward g to the residual stream, one after the other or (parallel_residual) at once.

    pre_norm: x + f(norm(x)), then x + g(norm(x)); parallel: x + f(h) + g(h) with one h = norm(x). deepnorm (Wang et al.
    2022, arXiv:2203.00555): norm(alpha x + f(x)), then norm(alpha x + g(x)); parallel: norm(alpha x + f(x) + g(x)).
    """

    def __init__(self, config: ByteConfig, layer_idx: int) -> None:
        super().__init__()
        D, eps, depth = config.hidden_size, config.rms_norm_eps, config.num_hidden_layers
        self.is_deepnorm, self.is_parallel = config.residual == "deepnorm", config.parallel_residual
        self.is_sparse = config.num_experts > 0
        self.alpha = (2 * depth) ** 0.25
        self.residual_dropout = config.residual_dropout
        # DropPath's rate rises linearly with depth, from 0 (Huang et al. 2016, arXiv:1603.09382).
        self.drop_path_rate = config.drop_path_rate * layer_idx / (depth - 1) if depth > 1 else 0.0

        self.self_attn = ByteAttention(config, layer_idx)
        F = config.intermediate_sizes[layer_idx]
        self.mlp = ByteSparseMoeBlock(config) if self.is_sparse else ByteMLP(config, F)
        if not self.is_deepnorm:
            self.input_layernorm = ByteRMSNorm(D, eps)
        if not self.is_parallel:
            self.post_attention_layernorm = ByteRMSNorm(D, eps)
        if self.is_deepnorm:
            self.post_feedforward_layernorm = ByteRMSNorm(D, eps)
        initial = config.layer_scale_init
        self.self_attn_layer_scale = ByteLayerScale(D, initial) if initial is not None else None
        self.mlp_layer_scale = ByteLayerScale(D, initial) if initial is not None else None

    @with_either_cache_name
    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        token_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Applies the layer to [B, T, D]."""
        branch_input = hidden_states if self.is_deepnorm else self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(branch_input, position_embeddings, attention_mask, past_key_values, **kwargs)
        hidden_states = self.residual(hidden_states) + self.branch(attended, self.self_attn_layer_scale)
        residual = hidden_states
        if not self.is_parallel:
            branch_input = self.post_attention_layernorm(hidden_states)
            residual = self.residual(branch_input) if self.is_deepnorm else hidden_states
        fed = self.mlp(branch_input, token_mask) if self.is_sparse else self.mlp(branch_input)
        hidden_states = residual + self.branch(fed, self.mlp_layer_scale)
        return self.post_feedforward_layernorm(hidden_states) if self.is_deepnorm else hidden_states

    def residual(self, hidden_states: Tensor) -> Tensor:
        """The term that a branch is added to: x, or alpha · x with DeepNorm."""
        return self.alpha * hidden_states if self.is_deepnorm else hidden_states

    def branch(self, output: Tensor, layer_scale: ByteLayerScale | None) -> Tensor:
        """A branch's output [B, T, D] after dropout, LayerScale and DropPath, which drops it for whole rows."""
        if self.residual_dropout:
            output = nn.functional.dropout(output, self.residual_dropout, self.training)
        if layer_scale is not None:
            output = layer_scale(output)
        if self.drop_path_rate and self.training:
            output = output * nn.functional.dropout(output.new_ones(output.shape[0], 1, 1), self.drop_path_rate)
        return output


class BytePreTrainedModel(PreTrainedModel):
    """Tells Transformers how to initialise, split and accelerate StellarByte models, and can prune heads."""

    config_class = ByteConfig
    config: ByteConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ByteDecoderLayer"]  # noqa: RUF012 - transformers' own protocol
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012
        "router_logits": OutputRecorder(ByteTopKRouter, index=0),
        "hidden_states": ByteDecoderLayer,
        "attentions": ByteAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding | ByteTopKRouter):
            init.normal_(module.weight, mean=0.0, std=std * getattr(module, INITIAL_GAIN, 1.0))
            if isinstance(bias := getattr(module, "bias", None), Tensor):
                init.zeros_(bias)
        elif isinstance(module, ByteExperts):
            for weight, gain in zip((module.gate_up_proj, module.down_proj), self.config.initial_gains, strict=True):
                init.normal_(weight, mean=0.0, std=std * gain)
        elif isinstance(module, ByteRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, ByteLayerScale):
            init.constant_(module.weight, module.initial)
        # from_pretrained builds the model on "meta", so buffers that no file holds are filled in here.
        elif isinstance(module, ByteRotaryEmbedding):
            module.fill_buffers()
            if self.config.xpos_learnable and not module.zeta_is_there:  # trained or loaded values stay
                init.copy_(module.zeta, module.initial_zeta(self.config))

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Removes query heads in place. heads_to_prune: {layer: [heads]}, numbered as before anything was pruned.

        Several calls add up. config.pruned_heads lists all removed heads; saving and loading a model follow it.
        A key/value head goes with the last query head that reads it. An optimizer made before still holds the old
        parameters: make a new one. Raises ValueError for an unknown layer or head, or a layer left without heads.
        """
        depth = self.config.num_hidden_layers
        before = self.config.pruned_heads or ((),) * depth
        pruned = [set(gone) for gone in before]
        for layer, heads in heads_to_prune.items():
            if not 0 <= layer < depth:
                raise ValueError(f"heads_to_prune names layer {layer}: the layers are 0 to {depth - 1}")
            pruned[layer].update(heads)
        pruned_heads = tuple(tuple(sorted(gone)) for gone in pruned)
        if complaint := contradiction({**vars(self.config), "pruned_heads": pruned_heads}):
            raise ValueError(complaint)
        decoder: Any = self.base_model
        changed = {
            index: decoder.layers[index].self_attn for index in range(depth) if set(before[index]) != pruned[index]
        }
        for projection in (getattr(attn, f"{name}_proj") for attn in changed.values() for name in "qkvo"):
            if type(projection) is not nn.Linear or hasattr(projection, "quantization_scheme"):
                kind = type(projection).__name__
                raise ValueError(f"prune_heads meets a {kind}: merge adapters, or load the weights unquantized")
        for index, attn in changed.items():
            attn.prune_heads(pruned_heads[index])
        self.config.pruned_heads = pruned_heads


class ByteDecoder(BytePreTrainedModel):
    """The backbone: turns token ids or embeddings into hidden states, up to and including the final norm."""

    def __init__(self, config: ByteConfig) -> None:
        super().__init__(config)
        config.check_xpos_range(config.dtype)  # from_pretrained(dtype=…) sets it after the config was built
        # There is no padding_idx: the JAX side trains every row, and both sides must have the same gradients.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ByteDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = ByteRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = ByteRotaryEmbedding(config) if config.position_embedding != "none" else None
        self.gradient_checkpointing = False
        if config.xpos_learnable:
            self._keep_in_fp32_modules_strict = ["zeta"]
        self.post_init()

    @with_either_cache_name
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Runs the decoder. Contradictory arguments raise ValueError, and unknown ones TypeError.

        Args:
            input_ids: [B, T]; or give inputs_embeds [B, T, D].
            attention_mask: [B, S], 1 for tokens and 0 for padding; without it every token counts. Or [B, 1, T, S], True
                where a query sees a key, or floats that are added to the scores.
            position_ids: [B, T]. If they do not rise by one, a new packed document starts, which sees none of the
                others (only without attention_mask and past_key_values, as everywhere in Transformers).
            past_key_values: the cache to read and extend; it may be given as `cache`.
            use_cache: whether to return a cache; config.use_cache by default.
            kwargs: any of `KEYWORDS`.
        """
        refuse_unknown(kwargs, self)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids and inputs_embeds exclude each other: give exactly one")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)

        # The mask is made from the caller's own positions, before a cache is made. Otherwise Transformers would miss
        # packed documents if use_cache is true, and sdpa would not use its causal kernel if nothing is packed.
        create_mask = create_sliding_window_causal_mask if self.config.sliding_window else create_causal_mask
        causal_mask = create_mask(self.config, inputs_embeds, attention_mask, past_key_values, position_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen)[None]
        position_embeddings = None if self.rotary_emb is None else self.rotary_emb(inputs_embeds, position_ids)
        token_mask = mask_of_tokens(attention_mask, inputs_embeds.shape[1])
        cache: dict[str, Any] = {CACHE: past_key_values}  # GradientCheckpointingLayer removes it by this name
        options = {"position_ids": position_ids, "use_cache": use_cache, "token_mask": token_mask, **cache}

        hidden_states = inputs_embeds
        if self.config.hidden_dropout:
            hidden_states = nn.functional.dropout(hidden_states, self.config.hidden_dropout, self.training)
        for decoder_layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = decoder_layer(hidden_states, position_embeddings, causal_mask, **options, **kwargs)
        return MoeModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **cache)


@dataclass
class ByteCausalLMOutput(MoeCausalLMOutputWithPast):
    """Transformers' output of a mixture of experts with the routers' z-loss; in a dense model these fields are None."""

    z_loss: torch.FloatTensor | None = None


class ByteForCausalLM(BytePreTrainedModel, GenerationMixin):
    """The language model: ByteDecoder with a head over the vocabulary, loss and generate."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # noqa: RUF012
    _fsdp_plan = {"lm_head": "keep_full_weight"}  # noqa: RUF012

    def __init__(self, config: ByteConfig) -> None:
        super().__init__(config)
        self.model = ByteDecoder(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @with_either_cache_name
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> ByteCausalLMOutput:
        """The logits of each next token, and their cross-entropy if labels are given.

        Args:
            input_ids: like attention_mask, position_ids, past_key_values, inputs_embeds, use_cache: see ByteDecoder.
            labels: [B, T], the input ids themselves (they are shifted inside); -100 is not counted.
            output_router_logits: whether to return the routers' logits, their balance loss (aux_loss) and z_loss, and
                add the two losses, times their coefficients, to the loss; config.output_router_logits by default.
            logits_to_keep: the number of last positions to get logits for (0: all), or a 1-D tensor of positions.
            kwargs: any of `KEYWORDS`; another raises TypeError.
        """
        refuse_unknown(kwargs, self)
        if output_router_logits is None:
            output_router_logits = getattr(self.config, "output_router_logits", False)
        options = {"use_cache": use_cache, "output_router_logits": output_router_logits, **kwargs}
        outputs: Any = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, **options)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states = outputs.last_hidden_state
        logits = self.lm_head(hidden_states[:, kept, :])

        loss: Any = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        aux_loss: Any = None
        z_loss: Any = None
        if outputs.router_logits:
            aux_coef, z_coef = self.config.router_aux_loss_coef, self.config.router_z_loss_coef
            top_k = self.config.num_experts_per_tok
            balance_B, z_B, tokens_B = router_losses(outputs.router_logits, top_k, len(hidden_states), attention_mask)
            weight_B = tokens_B / tokens_B.sum().clamp(min=1)
            aux_loss, z_loss = (balance_B * weight_B).sum(), (z_B * weight_B).sum()
            if labels is not None:
                if (items := kwargs.get("num_items_in_batch")) is not None:
                    # This is one of several micro-batches; a row's weight is its share of all their trained tokens.
                    weight_B = (labels[:, 1:] != -100).sum(dim=1).to(tokens_B) / items
                extra = ((aux_coef * balance_B + z_coef * z_B) * weight_B).sum()
                loss = loss + extra.to(loss.device)
        return ByteCausalLMOutput(
            loss=loss,
            aux_loss=aux_loss,
            z_loss=z_loss,
            logits=logits,
            **{name: value for name, value in outputs.items() if name != "last_hidden_state"},
        )

    def forward_step(
        self, x_t: Tensor, past_k: tuple[Tensor, ...] | None = None, past_v: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """One step of your own decoding loop: logits [B, T, V], and past_k and past_v for the next step.

        x_t: token ids [B, T], first a prompt, then usually T = 1. past_k, past_v: the last step's result, for each
        layer [B, K, S, H] of all S tokens so far, including those outside a sliding window; None at the start.
        """
        assert (past_k is None) == (past_v is None)
        cache: Any = DynamicCache(None if past_k is None or past_v is None else zip(past_k, past_v, strict=True))
        outputs = self(x_t, past_key_values=cache, use_cache=True)
        new_k, new_v = zip(*((layer.keys, layer.values) for layer in cache.layers), strict=True)
        return outputs.logits, new_k, new_v


# Trainer's label smoothing shifts labels for the classes named here; code that comes with a folder needs it as well.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[ByteConfig.model_type] = ByteForCausalLM.__name__

# The public short name, the same in JAX and PyTorch.
ByteModel = ByteForCausalLM

__all__ = ["ByteDecoder", "ByteForCausalLM", "ByteModel", "BytePreTrainedModel"]
