"""The whole StellarByte architecture in PyTorch, top to bottom, as a Hugging Face model.

Shape suffixes: B batch, T query time, S key time, D hidden, N query heads, K key/value heads, G = N / K, H head size,
E experts, L layers, M = B · T rows, k experts of a token.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
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
from transformers.utils import can_return_tuple
from transformers.utils.generic import maybe_autocast, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_stellarbyte import XPOS_SMALLEST_ZETA, ByteConfig, contradiction

# (cos, sin) and, with XPos, (cos, sin) for the queries followed by (cos, sin) for the keys, each float32 [B, T, H].
PositionEmbeddings = tuple[torch.Tensor, ...]

# Marks the projections that do not start at initializer_range itself, with what it is multiplied by.
INITIAL_GAIN = "initial_gain"


def initial_gains(config: ByteConfig) -> tuple[float, float]:
    """What initializer_range is multiplied by: inside a branch of the residual stream, and where it joins the stream.

    DeepNorm's beta is for both (v_proj and o_proj; the whole feed-forward). Under pre_norm 2L branches add up: so
    scaled, the variance at the end does not grow with depth.
    """
    depth = config.num_hidden_layers
    return ((8 * depth) ** -0.25,) * 2 if config.residual == "deepnorm" else (1.0, (2 * depth) ** -0.5)


@use_kernel_forward_from_hub("RMSNorm")
class ByteRMSNorm(nn.Module):
    """x / rms(x) · weight, with float32 statistics; the weight is multiplied after the cast back, as in Llama."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D], in the dtype that came in."""
        normed = hidden_states.float()
        normed = normed * torch.rsqrt(normed.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * normed.to(hidden_states.dtype)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


class ByteRotaryEmbedding(nn.Module):
    """Rotary positions, with XPos decay where the config asks for it (Sun et al. 2022, arXiv:2212.10554).

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

    @staticmethod
    def initial_inv_freq(config: ByteConfig) -> tuple[torch.Tensor, float]:
        """rope_theta^(-2i / H), stretched as rope_scaling says, float32 [H / 2]; and yarn's factor of cos and sin."""
        assert config.head_dim is not None
        if config.rope_scaling:
            return ROPE_INIT_FUNCTIONS[config.rope_scaling["rope_type"]](config)
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        return 1.0 / (config.rope_theta**exponent), 1.0

    @staticmethod
    def initial_zeta(config: ByteConfig) -> torch.Tensor:
        """(2i / H + 0.4) / 1.4, float32 [H / 2]."""
        assert config.head_dim is not None
        return (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim + 0.4) / 1.4

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> PositionEmbeddings:
        """position_ids [B, T] -> (cos, sin), and with XPos another such pair for the keys; on the device of x."""
        position_BT1 = position_ids[..., None].float()
        with torch.no_grad():
            angle = position_BT1 * self.frequencies(position_ids).to(x.device)
            angle = torch.cat((angle, angle), dim=-1)
            cos, sin = angle.cos(), angle.sin()
            if self.attention_scaling != 1.0:
                cos, sin = cos * self.attention_scaling, sin * self.attention_scaling
        if self.config.position_embedding == "rope":
            return cos, sin

        reference = self.config.max_position_embeddings / 2
        exponent = (position_BT1 - reference) / self.config.xpos_scale_base * self.bounded_zeta().log()
        exponent = torch.cat((exponent, exponent), dim=-1)
        query_factor, key_factor = exponent.exp(), (-exponent).exp()
        return cos * query_factor, sin * query_factor, cos * key_factor, sin * key_factor

    def frequencies(self, position_ids: torch.Tensor) -> torch.Tensor:
        """float32 [H / 2]; those of rope_scaling dynamic grow with the sequence that this call ends.

        Unlike transformers' dynamic_rope_update this remembers no earlier call: the same call gives the same logits.
        """
        if self.rope_type != "dynamic":
            return self.inv_freq
        seq_len = position_ids.max() + 1
        grown, _ = ROPE_INIT_FUNCTIONS["dynamic"](self.config, self.inv_freq.device, seq_len)
        return torch.where(seq_len > self.config.max_position_embeddings, grown, self.inv_freq)

    def bounded_zeta(self) -> torch.Tensor:
        """Zeta [H / 2] inside [zeta_0, 1]; the gradient passes straight through, so a value at the bound can return."""
        if not self.config.xpos_learnable:
            return self.zeta
        return self.zeta + (self.zeta.clamp(XPOS_SMALLEST_ZETA, 1.0) - self.zeta).detach()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "ByteRotaryEmbedding":
        # model.to(torch.bfloat16) must not round frequencies to 8 bits: position 300 would then turn by a wrong angle.
        def move_but_keep_float32(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_but_keep_float32, recurse)


def rotate(x: torch.Tensor, rotation: PositionEmbeddings) -> torch.Tensor:
    """Turn the pairs (i, i + H / 2) of x [B, N, T, H] by (cos, sin), in float32 at least, back in the dtype of x."""
    cos, sin = (table[:, None] for table in rotation)
    first, second = x.chunk(2, dim=-1)
    # cos and sin are float32, so narrower x is promoted; a float64 model keeps its own precision.
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def repeat_kv(x: torch.Tensor, n_rep: int) -> torch.Tensor:
    """[B, K, S, H] -> [B, K · n_rep, S, H]: each key/value head once for every query head that reads it."""
    return x if n_rep == 1 else x.repeat_interleave(n_rep, dim=1)


def eager_attention_forward(
    module: "ByteAttention",
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,  # noqa: ARG001 - the attention interface's signature
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention step by step: what the fused kernels are compared with, and the only one that returns its weights.

    query [B, N, T, H], key and value [B, K, S, H], additive attention_mask [B, 1, T, S]
    -> output [B, T, N, H], weights [B, N, T, S].
    """
    key_BNSH = repeat_kv(key, module.num_key_value_groups)
    value_BNSH = repeat_kv(value, module.num_key_value_groups)
    scores_BNTS = torch.matmul(query, key_BNSH.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores_BNTS = scores_BNTS + attention_mask
    weights_BNTS = nn.functional.softmax(scores_BNTS, dim=-1, dtype=torch.float32).to(query.dtype)
    weights_BNTS = nn.functional.dropout(weights_BNTS, p=dropout, training=module.training)
    return torch.matmul(weights_BNTS, value_BNSH).transpose(1, 2).contiguous(), weights_BNTS


class ByteAttention(nn.Module):
    """Causal grouped-query attention: G query heads read each key/value head, as far as they are not pruned."""

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
        inner_gain, output_gain = initial_gains(config)
        setattr(self.v_proj, INITIAL_GAIN, inner_gain)
        setattr(self.o_proj, INITIAL_GAIN, output_gain)

    kv_index: torch.Tensor | None

    def set_heads(self, gone: Iterable[int], device: torch.device | None = None) -> None:
        """Lay out the heads that remain; a key/value head goes with the last query head that reads it."""
        assert self.config.num_key_value_heads is not None
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        queries = [head for head in range(self.config.num_attention_heads) if head not in gone]
        keys = sorted({head // group for head in queries})
        self.heads = (queries, keys)
        # Which of the remaining key/value heads each query head reads. Unless all groups are of one size, attention
        # gets a copy for each query head.
        self.kv_slots = [keys.index(head // group) for head in queries]
        size = len(queries) // len(keys)
        self.is_regular = self.kv_slots == [position // size for position in range(len(queries))]
        self.num_key_value_groups = size if self.is_regular else 1
        index = None if self.is_regular else torch.tensor(self.kv_slots, device=device)
        self.register_buffer("kv_index", index, persistent=False)

    @torch.no_grad()
    def prune_heads(self, gone: Iterable[int]) -> None:
        """Cut the projections down to what remains without these heads, which include those that are gone already."""
        projections = ((self.q_proj, 0, 0), (self.k_proj, 0, 1), (self.v_proj, 0, 1), (self.o_proj, 1, 0))
        before, device = self.heads, self.q_proj.weight.device
        self.set_heads(gone, device)
        for projection, dim, which in projections:
            slots = torch.tensor([before[which].index(head) for head in self.heads[which]], device=device)
            channels = (slots[:, None] * self.head_dim + torch.arange(self.head_dim, device=device)).flatten()
            weight = projection.weight
            projection.weight = nn.Parameter(weight.index_select(dim, channels), requires_grad=weight.requires_grad)
            if dim == 0 and (bias := projection.bias) is not None:
                projection.bias = nn.Parameter(bias.index_select(0, channels), requires_grad=bias.requires_grad)
            projection.out_features, projection.in_features = projection.weight.shape

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: PositionEmbeddings | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden_states [B, T, D] -> [B, T, D] and the weights [B, N, T, S], which only eager attention has."""
        input_shape = hidden_states.shape[:-1]
        head_shape = (*input_shape, -1, self.head_dim)

        q_BTNH = self.q_proj(hidden_states).view(head_shape)
        k_BSKH = self.k_proj(hidden_states).view(head_shape)
        if self.has_qk_norm:
            q_BTNH, k_BSKH = self.q_norm(q_BTNH), self.k_norm(k_BSKH)
        q_BNTH, k_BKSH = q_BTNH.transpose(1, 2), k_BSKH.transpose(1, 2)
        v_BKSH = self.v_proj(hidden_states).view(head_shape).transpose(1, 2)
        if position_embeddings is not None:
            q_BNTH = rotate(q_BNTH, position_embeddings[:2])
            k_BKSH = rotate(k_BKSH, position_embeddings[-2:])

        if past_key_values is not None:
            k_BKSH, v_BKSH = past_key_values.update(k_BKSH, v_BKSH, self.layer_idx)
            if self.sliding_window == 1:
                # transformers' sliding cache means to keep the last W - 1 slots, but [-0:] are all of them.
                T = q_BNTH.shape[2]
                k_BKSH, v_BKSH = k_BKSH[:, :, -T:], v_BKSH[:, :, -T:]
                attention_mask = (
                    attention_mask[..., -T:] if isinstance(attention_mask, torch.Tensor) else attention_mask
                )
        if not self.is_regular:
            k_BKSH, v_BKSH = k_BKSH[:, self.kv_index], v_BKSH[:, self.kv_index]

        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            q_BNTH,
            k_BKSH,
            v_BKSH,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(output.reshape(*input_shape, -1).contiguous()), weights


class ByteMLP(nn.Module):
    """Gated feed-forward: down(act(gate(x)) · up(x)); SwiGLU with hidden_act silu (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ByteConfig, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]
        inner_gain, output_gain = initial_gains(config)
        for projection, gain in (
            (self.gate_proj, inner_gain),
            (self.up_proj, inner_gain),
            (self.down_proj, output_gain),
        ):
            setattr(projection, INITIAL_GAIN, gain)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


@use_experts_implementation
class ByteExperts(nn.Module):
    """The gated feed-forward matrices of all experts, gate before up, stacked on E: transformers 5's own layout.

    `experts_implementation` chooses how they are multiplied: by default grouped_mm, one grouped matmul.
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

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """[M, D], each row's experts [M, k] and their weights -> [M, D]; this is `eager`: one expert after another."""
        output = torch.zeros_like(hidden_states)
        for expert in top_k_index.unique():
            if expert == self.num_experts:  # what another device of an expert-parallel group computes
                continue
            rows, choices = torch.where(top_k_index == expert)
            gate, up = nn.functional.linear(hidden_states[rows], self.gate_up_proj[expert]).chunk(2, dim=-1)
            y = nn.functional.linear(self.act_fn(gate) * up, self.down_proj[expert])
            output.index_add_(0, rows, (y * top_k_weights[rows, choices, None]).to(output.dtype))
        return output


class ByteTopKRouter(nn.Module):
    """Sends each token to the experts that score highest, in float32 whatever the dtype."""

    def __init__(self, config: ByteConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[M, D] -> logits [M, E]; weights [M, k] and the experts [M, k] they belong to, best first."""
        with maybe_autocast(hidden_states.device.type, enabled=False):
            logits = nn.functional.linear(hidden_states.float(), self.weight.float())
        experts = choose_experts(logits, self.top_k)
        if self.norm_topk_prob:
            weights = logits.gather(-1, experts).softmax(dim=-1)  # one expert alone has exactly 1, of gradient 0
        else:
            weights = logits.softmax(dim=-1).gather(-1, experts)
        return logits, weights, experts


def choose_experts(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """The k highest of logits [..., E], best first: [..., k]. Of equal ones the lower index, which topk leaves open."""
    return logits.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]


class ByteSparseMoeBlock(nn.Module):
    """Σ weight · expert(x) over each token's experts, and the shared experts' output."""

    def __init__(self, config: ByteConfig) -> None:
        super().__init__()
        assert config.moe_intermediate_size is not None
        self.experts = ByteExperts(config)
        self.gate = ByteTopKRouter(config)
        self.capacity_factor = config.moe_capacity_factor
        shared_size = config.num_shared_experts * config.moe_intermediate_size
        self.shared_experts = ByteMLP(config, shared_size) if shared_size else None

    def forward(self, hidden_states: torch.Tensor, token_mask: torch.Tensor | None = None) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]; token_mask [B, T] is 0 for padding, which takes no place in an expert."""
        x_MD = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights_Mk, experts_Mk = self.gate(x_MD)
        if self.training and self.capacity_factor is not None:
            experts_BTk = experts_Mk.unflatten(0, hidden_states.shape[:2])
            weights_Mk = weights_Mk * self.has_place(experts_BTk, token_mask).flatten(0, 1)
        output = self.experts(x_MD, experts_Mk, weights_Mk).view(hidden_states.shape)
        return output if self.shared_experts is None else output + self.shared_experts(hidden_states)

    def has_place(self, experts_BTk: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
        """Which choices their expert still serves, bool [B, T, k]: of each row the first ceil(factor · k · T / E)."""
        assert self.capacity_factor is not None
        (B, T, k), E = experts_BTk.shape, self.experts.num_experts
        is_chosen = experts_BTk[..., None] == torch.arange(E, device=experts_BTk.device)
        if token_mask is not None:
            is_chosen = is_chosen & token_mask.bool()[:, :, None, None]
        place = is_chosen.view(B, T * k, E).cumsum(dim=1).view(B, T, k, E).gather(-1, experts_BTk[..., None])[..., 0]
        return place <= math.ceil(self.capacity_factor * k * T / E)


def mask_of_tokens(attention_mask: Any, length: int) -> torch.Tensor | None:
    """Which of the last `length` tokens are real, [B, T], from an attention_mask [B, S]; masks of pairs do not say."""
    return (
        attention_mask[:, -length:] if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2 else None
    )


def router_losses(
    router_logits: tuple[torch.Tensor, ...], top_k: int, batch_size: int, attention_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(balance, z) of the logits [B · T, E] of each layer, over the tokens that attention_mask [B, S >= T] calls real.

    balance: E · Σ_i f_i P_i for each row and layer, f_i the share of its tokens that chose expert i (they sum to k),
    P_i its mean probability (Fedus et al. 2021, arXiv:2101.03961); the mean over layers and, weighted by their tokens,
    rows. z: the mean of logsumexp(logits)² (Zoph et al. 2022, arXiv:2202.08906).
    """
    device = router_logits[0].device
    logits_LBTE = torch.stack([logits.to(device) for logits in router_logits]).unflatten(1, (batch_size, -1))
    _, B, T, E = logits_LBTE.shape
    token_mask = mask_of_tokens(attention_mask, T)
    counted_BT = logits_LBTE.new_ones(B, T) if token_mask is None else token_mask.to(logits_LBTE)
    tokens_B = counted_BT.sum(dim=1)
    tokens = tokens_B.sum().clamp(min=1)

    chosen_LBTE = torch.zeros_like(logits_LBTE).scatter_(-1, choose_experts(logits_LBTE.detach(), top_k), 1.0)
    share_BT1 = (counted_BT / tokens_B[:, None].clamp(min=1))[..., None]
    f_LBE = (chosen_LBTE * share_BT1).sum(dim=2)
    P_LBE = (logits_LBTE.softmax(dim=-1) * share_BT1).sum(dim=2)
    balance_B = E * (f_LBE * P_LBE).sum(dim=-1).mean(dim=0)
    z_BT = logits_LBTE.logsumexp(dim=-1).square().mean(dim=0)
    return (balance_B * tokens_B).sum() / tokens, (z_BT * counted_BT).sum() / tokens


class ByteLayerScale(nn.Module):
    """A gain for each channel of a branch (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, hidden_size: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.weight = nn.Parameter(torch.full((hidden_size,), float(initial)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]."""
        return hidden_states * self.weight


class ByteDecoderLayer(GradientCheckpointingLayer):
    """Attention f and feed-forward g joined to the residual stream, one after the other or, in parallel, at once.

    pre_norm: x + f(norm(x)), then x + g(norm(x)); in parallel x + f(h) + g(h) of one h = norm(x).
    deepnorm (Wang et al. 2022, arXiv:2203.00555): norm(alpha x + f(x)), then norm(alpha x + g(x)); in parallel
    norm(alpha x + f(x) + g(x)).
    """

    def __init__(self, config: ByteConfig, layer_idx: int) -> None:
        super().__init__()
        D, eps, depth = config.hidden_size, config.rms_norm_eps, config.num_hidden_layers
        self.is_deepnorm = config.residual == "deepnorm"
        self.is_parallel = config.parallel_residual
        self.is_sparse = config.num_experts > 0
        self.alpha = (2 * depth) ** 0.25
        self.residual_dropout = config.residual_dropout
        # DropPath rises with depth, from 0 (Huang et al. 2016, arXiv:1603.09382).
        self.drop_path_rate = config.drop_path_rate * layer_idx / (depth - 1) if depth > 1 else 0.0

        self.self_attn = ByteAttention(config, layer_idx)
        self.mlp = ByteSparseMoeBlock(config) if self.is_sparse else ByteMLP(config, config.intermediate_size)
        if not self.is_deepnorm:
            self.input_layernorm = ByteRMSNorm(D, eps)
        if not self.is_parallel:
            self.post_attention_layernorm = ByteRMSNorm(D, eps)
        if self.is_deepnorm:
            self.post_feedforward_layernorm = ByteRMSNorm(D, eps)
        initial = config.layer_scale_init
        self.self_attn_layer_scale = ByteLayerScale(D, initial) if initial is not None else None
        self.mlp_layer_scale = ByteLayerScale(D, initial) if initial is not None else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        position_embeddings: PositionEmbeddings | None = None,
        token_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]."""
        branch_input = hidden_states if self.is_deepnorm else self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(
            hidden_states=branch_input,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        hidden_states = self.residual(hidden_states) + self.branch(attended, self.self_attn_layer_scale)
        residual = hidden_states
        if not self.is_parallel:
            branch_input = self.post_attention_layernorm(hidden_states)
            residual = self.residual(branch_input) if self.is_deepnorm else hidden_states
        fed = self.mlp(branch_input, token_mask) if self.is_sparse else self.mlp(branch_input)
        hidden_states = residual + self.branch(fed, self.mlp_layer_scale)
        return self.post_feedforward_layernorm(hidden_states) if self.is_deepnorm else hidden_states

    def residual(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the branches are added to: x, under DeepNorm alpha · x."""
        return self.alpha * hidden_states if self.is_deepnorm else hidden_states

    def branch(self, output: torch.Tensor, layer_scale: ByteLayerScale | None) -> torch.Tensor:
        """What a branch's output [B, T, D] adds: after dropout, LayerScale and, a whole row at a time, DropPath."""
        if self.residual_dropout:
            output = nn.functional.dropout(output, self.residual_dropout, self.training)
        if layer_scale is not None:
            output = layer_scale(output)
        if self.drop_path_rate and self.training:
            output = output * nn.functional.dropout(output.new_ones(output.shape[0], 1, 1), self.drop_path_rate)
        return output


class BytePreTrainedModel(PreTrainedModel):
    """What transformers needs to know of every StellarByte model: how to start it, split it and speed it up."""

    config_class = ByteConfig
    config: ByteConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ByteDecoderLayer"]  # noqa: RUF012 - transformers' own protocol
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
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
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=std * getattr(module, INITIAL_GAIN, 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding | ByteTopKRouter):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, ByteExperts):
            for weight, gain in zip((module.gate_up_proj, module.down_proj), initial_gains(self.config), strict=True):
                init.normal_(weight, mean=0.0, std=std * gain)
        elif isinstance(module, ByteRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, ByteLayerScale):
            init.constant_(module.weight, module.initial)
        # from_pretrained builds the model without memory, so buffers that no file holds are filled in here.
        elif isinstance(module, ByteRotaryEmbedding):
            init.copy_(module.inv_freq, module.initial_inv_freq(self.config)[0])
            if self.config.position_embedding == "xpos":
                init.copy_(module.zeta, module.initial_zeta(self.config))
        elif isinstance(module, ByteAttention) and module.kv_index is not None:
            init.copy_(module.kv_index, torch.tensor(module.kv_slots))

    def prune_heads(self, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Take query heads out of the model, in place: {layer: [heads]}, counted as before anything was pruned.

        Several calls add up; config.pruned_heads says what is gone, and save_pretrained and from_pretrained follow it.
        A key/value head goes with the last query head that reads it. An optimizer made before still holds the old
        parameters: make a new one.

        Raises:
            ValueError: no such layer or head, or a layer would be left without heads.
        """
        depth = self.config.num_hidden_layers
        before = self.config.pruned_heads or ((),) * depth
        pruned = [set(gone) for gone in before]
        for layer, heads in heads_to_prune.items():
            if not 0 <= layer < depth:
                raise ValueError(f"heads_to_prune names layer {layer}: the layers are 0 to {depth - 1}")
            pruned[layer].update(heads)
        pruned_heads = tuple(tuple(sorted(gone)) for gone in pruned)
        complaint = contradiction({**vars(self.config), "pruned_heads": pruned_heads})
        if complaint is not None:
            raise ValueError(complaint)
        decoder: Any = self.base_model
        changed = [index for index in range(depth) if set(before[index]) != pruned[index]]
        for attn in (decoder.layers[index].self_attn for index in changed):
            for projection in (attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj):
                if type(projection) is not nn.Linear:
                    kind = type(projection).__name__
                    raise ValueError(f"prune_heads meets a {kind}: merge adapters, or load the weights unquantized")
        for index in changed:
            decoder.layers[index].self_attn.prune_heads(pruned_heads[index])
        self.config.pruned_heads = pruned_heads


class ByteDecoder(BytePreTrainedModel):
    """The backbone: token ids or embeddings to the hidden states after the final norm."""

    def __init__(self, config: ByteConfig) -> None:
        super().__init__(config)
        config.check_xpos_range(config.dtype)  # from_pretrained(dtype=…) sets it after the config was built
        # No padding_idx: the JAX side learns every row, and the two must have the same gradients.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ByteDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = ByteRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = ByteRotaryEmbedding(config) if config.position_embedding != "none" else None
        self.gradient_checkpointing = False
        if config.xpos_learnable:
            self._keep_in_fp32_modules_strict = ["zeta"]
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: [B, T]; or give inputs_embeds [B, T, D].
            attention_mask: [B, S], 1 for tokens and 0 for padding; without it every token counts.
            position_ids: [B, T]; where they do not rise by one, a new packed document starts, which sees none of the
                others (only without attention_mask and past_key_values, as everywhere in transformers).
            past_key_values: the cache to read and to extend.
            use_cache: whether to return a cache; config.use_cache by default.

        Raises:
            ValueError: input_ids and inputs_embeds are both given, or neither.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids and inputs_embeds exclude each other: give exactly one")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)

        # Before a cache is made for the caller, and with the caller's own positions: only so does transformers find the
        # packed documents whatever use_cache says, and only so does sdpa take its causal kernel when nothing is packed.
        windowed = self.config.sliding_window is not None
        causal_mask = (create_sliding_window_causal_mask if windowed else create_causal_mask)(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen)[None]
        position_embeddings = None if self.rotary_emb is None else self.rotary_emb(inputs_embeds, position_ids)
        token_mask = mask_of_tokens(attention_mask, inputs_embeds.shape[1])

        hidden_states = inputs_embeds
        if self.config.hidden_dropout:
            hidden_states = nn.functional.dropout(hidden_states, self.config.hidden_dropout, self.training)
        for decoder_layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = decoder_layer(
                hidden_states,
                attention_mask=causal_mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                token_mask=token_mask,
                **kwargs,
            )
        return MoeModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


@dataclass
class ByteCausalLMOutput(MoeCausalLMOutputWithPast):
    """transformers' output of a mixture of experts, and the router's z-loss; of a dense model those fields are None."""

    z_loss: torch.FloatTensor | None = None


class ByteForCausalLM(BytePreTrainedModel, GenerationMixin):
    """The language model: ByteDecoder and a head over the vocabulary, with loss and generate."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _tp_plan = {"lm_head": "colwise_gather_output"}  # noqa: RUF012
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]  # noqa: RUF012
    _fsdp_plan = {"lm_head": "keep_full_weight"}  # noqa: RUF012

    def __init__(self, config: ByteConfig) -> None:
        super().__init__(config)
        self.model = ByteDecoder(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> ByteCausalLMOutput:
        """Logits of the next token, and with labels their cross-entropy.

        Args:
            input_ids: and attention_mask, position_ids, past_key_values, inputs_embeds, use_cache: see ByteDecoder.
            labels: [B, T], the input ids themselves (the shift happens inside); -100 is not counted.
            output_router_logits: also return the routers' logits, their balance loss (aux_loss) and z_loss, and add the
                two to the loss, times their coefficients; config.output_router_logits by default.
            logits_to_keep: only the last so many positions get logits (0: all), or the positions in a 1-D tensor.
        """
        if output_router_logits is None:
            output_router_logits = getattr(self.config, "output_router_logits", False)
        outputs: MoeModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=output_router_logits,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states = outputs.last_hidden_state
        assert hidden_states is not None
        logits = self.lm_head(hidden_states[:, kept, :])

        loss: Any = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        aux_loss: Any = None
        z_loss: Any = None
        if outputs.router_logits:
            aux_loss, z_loss = router_losses(
                outputs.router_logits, self.config.num_experts_per_tok, hidden_states.shape[0], attention_mask
            )
            if loss is not None:
                extra = self.config.router_aux_loss_coef * aux_loss + self.config.router_z_loss_coef * z_loss
                loss = loss + extra.to(loss.device)
        return ByteCausalLMOutput(
            loss=loss,
            aux_loss=aux_loss,
            z_loss=z_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )

    def forward_step(
        self,
        x_t: torch.Tensor,
        past_k: tuple[torch.Tensor, ...] | None = None,
        past_v: tuple[torch.Tensor, ...] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """One step of a decoding loop of your own.

        x_t: token ids [B, T], at first a prompt, then usually T = 1. past_k, past_v: what the last step returned, for
        each layer [B, K, S, H] of the S tokens so far; None at the start. -> logits [B, T, V], new_k, new_v.

        All S slots are kept, even those that a sliding window no longer sees: S is the position of x_t.
        """
        assert (past_k is None) == (past_v is None)
        cache: Any = DynamicCache(None if past_k is None or past_v is None else zip(past_k, past_v, strict=True))
        outputs = self(x_t, past_key_values=cache, use_cache=True)
        return (
            outputs.logits,
            tuple(layer.keys for layer in cache.layers),
            tuple(layer.values for layer in cache.layers),
        )


# The public short name, on both sides.
ByteModel = ByteForCausalLM

__all__ = ["ByteDecoder", "ByteForCausalLM", "ByteModel", "BytePreTrainedModel"]
