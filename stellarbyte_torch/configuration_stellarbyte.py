"""The architecture of a StellarByte model as a Hugging Face configuration; exports carry this file."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# Largest finite value of each compute dtype. XPos computes in float32 and then casts, so wider dtypes gain nothing.
_LARGEST_FINITE = {"float32": 3.4028235e38, "bfloat16": 3.3895314e38, "float16": 65504.0}

# XPos decays pair 0 the fastest: zeta_0 = 0.4 / 1.4 (Sun et al. 2022, arXiv:2212.10554).
XPOS_SMALLEST_ZETA = 0.4 / 1.4


@strict
class ByteConfig(PreTrainedConfig):
    """Architecture of a StellarByte decoder: the same fields, defaults and rejections as `stellarbyte_jax.ByteConfig`.

    `num_key_value_heads` defaults to `num_attention_heads`, `head_dim` to `hidden_size / num_attention_heads`.
    Rotary settings stay flat (`rope_theta`, no `rope_parameters`), so config.json reads the same on both sides.
    `use_cache` is Hugging Face's own: whether a forward call keeps keys and values when it is not told.

    Raises:
        ValueError: a field is out of range, or two fields contradict each other.
        StrictDataclassFieldValidationError: a field has the wrong type, or is not one of its literal values.
    """

    model_type = "stellarbyte"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers reads it from the class
    base_model_tp_plan = {  # noqa: RUF012
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {  # noqa: RUF012
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: Literal["silu", "gelu", "gelu_pytorch_tanh", "relu"] = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: int | float = 1e-5
    initializer_range: int | float = 0.02
    tie_word_embeddings: bool = False
    position_embedding: Literal["xpos", "rope"] = "xpos"
    rope_theta: int | float = 10000.0
    xpos_scale_base: int | float = 512.0
    xpos_learnable: bool = False
    # None and lists are what Hugging Face tools may set later on; a trained StellarByte model has three different ids.
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    pad_token_id: int | None = 2
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("rope_scaling", "rope_parameters"):
            value = kwargs.pop(name, None)
            _require(value is None, name, value, "is not supported: leave it out, and set rope_theta")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads == 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Refuse contradictions; transformers calls it again before it saves.

        Raises:
            ValueError: one sentence with the field, its value and the fix.
        """
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")
        _require(
            self.head_dim is not None,
            "hidden_size",
            self.hidden_size,
            f"is not divisible by num_attention_heads {self.num_attention_heads}: choose a multiple, or set head_dim",
        )
        assert self.num_key_value_heads is not None
        assert self.head_dim is not None
        _require(
            self.num_key_value_heads > 0 and self.num_attention_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            self.num_key_value_heads,
            f"must divide num_attention_heads {self.num_attention_heads}",
        )
        _require(
            self.head_dim > 0 and self.head_dim % 2 == 0,
            "head_dim",
            self.head_dim,
            "must be even and at least 2, for rotary positions turn pairs of channels",
        )
        for name in ("max_position_embeddings", "rms_norm_eps", "initializer_range", "rope_theta", "xpos_scale_base"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "must be greater than 0")
        self._check_token_ids()
        _require(
            self.position_embedding == "xpos" or not self.xpos_learnable,
            "xpos_learnable",
            self.xpos_learnable,
            f"needs position_embedding xpos, not {self.position_embedding}",
        )
        self.check_xpos_range(self.dtype)

    def _check_token_ids(self) -> None:
        token_ids: list[int] = []
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            for token_id in value if isinstance(value, list) else [value]:
                if token_id is not None:
                    _require(
                        0 <= token_id < self.vocab_size,
                        name,
                        token_id,
                        f"must be inside the vocabulary: 0 to vocab_size - 1 = {self.vocab_size - 1}",
                    )
                    token_ids.append(token_id)
        _require(
            len(set(token_ids)) == len(token_ids),
            "pad_token_id",
            self.pad_token_id,
            f"must differ from bos_token_id {self.bos_token_id} and eos_token_id {self.eos_token_id}, "
            "as they from each other",
        )

    def check_xpos_range(self, dtype: Any) -> None:
        """Refuse XPos decays that overflow `dtype` (a torch.dtype, its name, or None for float32) within the context.

        A score multiplies a query's and a key's factor, each at most zeta_0^(-r / base) with r =
        max_position_embeddings / 2; the product of two such, met by a pair that the causal mask then hides, must be
        finite.

        Raises:
            ValueError: naming the smallest `xpos_scale_base` that fits.
        """
        if self.position_embedding != "xpos":
            return
        dtype_name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
        largest = _LARGEST_FINITE.get(dtype_name, _LARGEST_FINITE["float32"])
        decay = self.max_position_embeddings * math.log(1 / XPOS_SMALLEST_ZETA)
        smallest_base = math.ceil(decay / math.log(largest))
        _require(
            self.xpos_scale_base >= smallest_base,
            "xpos_scale_base",
            self.xpos_scale_base,
            f"lets XPos leave the range of {dtype_name} within max_position_embeddings "
            f"{self.max_position_embeddings}: use at least {smallest_base}",
        )


def _require(holds: bool, name: str, value: object, complaint: str) -> None:
    if not holds:
        raise ValueError(f"{name} {value} {complaint}")


__all__ = ["ByteConfig"]
