"""The whole StellarByte architecture in PyTorch, top to bottom, as a Hugging Face model.

Shape suffixes: B batch, T query time, S key time, D hidden, N query heads, K key/value heads, G = N / K, H head size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.integrations import use_kernel_forward_from_hub
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_stellarbyte import XPOS_SMALLEST_ZETA, ByteConfig

# (cos, sin) for the queries and (cos, sin) for the keys, each float32 [B, T, H].
Rotation = tuple[torch.Tensor, torch.Tensor]
PositionEmbeddings = tuple[Rotation, Rotation]

# Marks the projections whose output joins the residual stream: they start smaller, the deeper the model.
WRITES_RESIDUAL = "writes_residual"


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
        self.inv_freq = nn.Buffer(self.initial_inv_freq(config), persistent=False)
        if config.position_embedding == "xpos":
            zeta = self.initial_zeta(config)
            self.zeta = nn.Parameter(zeta) if config.xpos_learnable else nn.Buffer(zeta, persistent=False)

    @staticmethod
    def initial_inv_freq(config: ByteConfig) -> torch.Tensor:
        """rope_theta^(-2i / H), float32 [H / 2]."""
        assert config.head_dim is not None
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        return 1.0 / (config.rope_theta**exponent)

    @staticmethod
    def initial_zeta(config: ByteConfig) -> torch.Tensor:
        """(2i / H + 0.4) / 1.4, float32 [H / 2]."""
        assert config.head_dim is not None
        return (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim + 0.4) / 1.4

    def forward(self, position_ids: torch.Tensor) -> PositionEmbeddings:
        """position_ids [B, T] -> (cos, sin) for queries and (cos, sin) for keys, each float32 [B, T, H]."""
        position_BT1 = position_ids[..., None].float()
        with torch.no_grad():
            angle = position_BT1 * self.inv_freq
            angle = torch.cat((angle, angle), dim=-1)
            cos, sin = angle.cos(), angle.sin()
        if self.config.position_embedding == "rope":
            return (cos, sin), (cos, sin)

        reference = self.config.max_position_embeddings / 2
        exponent = (position_BT1 - reference) / self.config.xpos_scale_base * self.bounded_zeta().log()
        exponent = torch.cat((exponent, exponent), dim=-1)
        query_factor, key_factor = exponent.exp(), (-exponent).exp()
        return (cos * query_factor, sin * query_factor), (cos * key_factor, sin * key_factor)

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


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turn the pairs (i, i + H / 2) of x [B, N, T, H] by `rotation`, in float32 at least, back in the dtype of x."""
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
    """Causal grouped-query attention: G query heads read each key/value head."""

    def __init__(self, config: ByteConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.head_dim is not None
        assert config.num_key_value_heads is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True

        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)
        setattr(self.o_proj, WRITES_RESIDUAL, True)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: PositionEmbeddings,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden_states [B, T, D] -> [B, T, D] and the weights [B, N, T, S], which only eager attention has."""
        input_shape = hidden_states.shape[:-1]
        head_shape = (*input_shape, -1, self.head_dim)
        query_rotation, key_rotation = position_embeddings

        q_BNTH = rotate(self.q_proj(hidden_states).view(head_shape).transpose(1, 2), query_rotation)
        k_BKSH = rotate(self.k_proj(hidden_states).view(head_shape).transpose(1, 2), key_rotation)
        v_BKSH = self.v_proj(hidden_states).view(head_shape).transpose(1, 2)
        if past_key_values is not None:
            k_BKSH, v_BKSH = past_key_values.update(k_BKSH, v_BKSH, self.layer_idx)

        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self, q_BNTH, k_BKSH, v_BKSH, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output.reshape(*input_shape, -1).contiguous()), weights


class ByteMLP(nn.Module):
    """Gated feed-forward: down(act(gate(x)) · up(x)); SwiGLU with hidden_act silu (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ByteConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        setattr(self.down_proj, WRITES_RESIDUAL, True)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class ByteDecoderLayer(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ByteConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = ByteAttention(config, layer_idx)
        self.mlp = ByteMLP(config)
        self.input_layernorm = ByteRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = ByteRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        position_embeddings: PositionEmbeddings | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]."""
        attended, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class BytePreTrainedModel(PreTrainedModel):
    """What transformers needs to know of every StellarByte model: how to start it, split it and speed it up."""

    config_class = ByteConfig
    config: ByteConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ByteDecoderLayer"]  # noqa: RUF012 - transformers' own protocol
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["zeta"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": ByteDecoderLayer, "attentions": ByteAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            # 2L branches add to the residual stream; so scaled, its variance at the end does not grow with depth.
            depth_scale = (2 * self.config.num_hidden_layers) ** -0.5 if hasattr(module, WRITES_RESIDUAL) else 1.0
            init.normal_(module.weight, mean=0.0, std=std * depth_scale)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, ByteRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, ByteRotaryEmbedding):
            # from_pretrained builds the model without memory, so buffers that no file holds are filled in here.
            init.copy_(module.inv_freq, module.initial_inv_freq(self.config))
            if self.config.position_embedding == "xpos":
                init.copy_(module.zeta, module.initial_zeta(self.config))


class ByteDecoder(BytePreTrainedModel):
    """The backbone: token ids or embeddings to the hidden states after the final norm."""

    def __init__(self, config: ByteConfig) -> None:
        super().__init__(config)
        config.check_xpos_range(config.dtype)  # from_pretrained(dtype=…) sets it after the config was built
        # No padding_idx: the JAX side learns every row, and the two must have the same gradients.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ByteDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = ByteRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = ByteRotaryEmbedding(config)
        self.gradient_checkpointing = False
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
    ) -> BaseModelOutputWithPast:
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
        causal_mask = create_causal_mask(
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
        position_embeddings = self.rotary_emb(position_ids)

        hidden_states = inputs_embeds
        for decoder_layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = decoder_layer(
                hidden_states,
                attention_mask=causal_mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


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
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token, and with labels their cross-entropy.

        Args:
            input_ids: and attention_mask, position_ids, past_key_values, inputs_embeds, use_cache: see ByteDecoder.
            labels: [B, T], the input ids themselves (the shift happens inside); -100 is not counted.
            logits_to_keep: only the last so many positions get logits (0: all), or the positions in a 1-D tensor.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_states = outputs.last_hidden_state
        assert hidden_states is not None
        logits = self.lm_head(hidden_states[:, kept, :])

        loss: Any = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# The public short name, on both sides.
ByteModel = ByteForCausalLM

__all__ = ["ByteDecoder", "ByteForCausalLM", "ByteModel", "BytePreTrainedModel"]
