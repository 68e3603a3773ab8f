"""Which causal architectures of Transformers keep packed samples apart: `python -m tests.packing_table` prints them.

Each is built tiny, in float32, and tried by what fine-tuning tries before it packs, and beside that by its gradients.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stellarbyte_torch.finetune.packing_check import PackingVerdict, check_packing

VOCABULARY = 97
# Names that architectures have for their sizes; what a config does not know it keeps and nobody reads.
SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim", "emb_dim", "embedding_size"), 32
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "num_experts_per_token", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), 24),
    # So far from uniform attention that a leak shows.
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),
    **{"vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "num_key_value_heads": 2, "head_dim": 8},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "n_group": 1, "topk_group": 1, "is_decoder": True},
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
}
# What one architecture wants otherwise; left out with None.
OTHERWISE: dict[str, dict[str, Any]] = {
    "dots1": {"first_k_dense_replace": 1, "n_shared_experts": 1},
    "falcon": {"head_dim": None},
    "bloom": {"hidden_size": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "hidden_size": 32},
    "gptj": {"rotary_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "num_attention_heads": None},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8},
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8},
    "xmod": {"default_language": "en_XX"},
    **{name: {"head_dim": None} for name in ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32")},
    **{name: {"head_dim": None} for name in ("longcat_flash", "minicpm3", "youtu")},
}
_LARGEST = 30_000_000


class Row(NamedTuple):
    """An architecture: the verdict on it, and the share of a sample's gradient that falls on the sample in front."""

    name: str
    verdict: PackingVerdict | None
    gradient: float
    moved: float
    problem: str = ""

    @property
    def is_exact_by_gradient(self) -> bool:
        """Whether no gradient crosses over, and logits are those of the sample alone."""
        return self.gradient < 1e-6 and self.moved < 1e-3

    def __str__(self) -> str:
        if self.verdict is None:
            return f"{self.name:26} cannot build: {self.problem[:80]}"
        if self.verdict.complaint:
            return f"{self.name:26} takes no packed rows: {self.verdict.complaint[:80]}"
        word = "exact" if self.verdict.is_exact else "leaks"
        return (
            f"{self.name:26} {word}  seen {self.verdict.seen:.1e}  moved {self.verdict.moved:.1e}  "
            f"gradient {self.gradient:.1e}"
        )


def rows() -> Iterator[Row]:
    """Every causal architecture that Transformers knows, in its order."""
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            model = tiny(name)
        except Exception as error:  # noqa: BLE001 - whatever some architecture cannot be built of
            yield Row(name, None, 0.0, 0.0, " ".join(str(error).split()) or type(error).__name__)
            continue
        verdict = check_packing(model, VOCABULARY)
        gradient, moved = (0.0, 0.0) if verdict.complaint else measured(model)
        yield Row(name, verdict, gradient, moved)


def tiny(name: str) -> PreTrainedModel:
    """A model of an architecture with random weights. Raises whatever it raises, or ValueError: it stays large."""
    fields = {key: value for key, value in {**SIZES, **OTHERWISE.get(name, {})}.items() if value is not None}
    try:
        config = CONFIG_MAPPING[name](**fields)
    except (StrictDataclassError, AttributeError, NotImplementedError, ValueError, TypeError):
        config = CONFIG_MAPPING[name]()
        for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
            for key, value in fields.items():
                if hasattr(part, key):
                    setattr(part, key, value)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > _LARGEST:
        raise ValueError(f"{size / 1e6:.0f} M parameters, whatever the sizes of its text")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def measured(model: PreTrainedModel) -> tuple[float, float]:
    """How much of the gradient of packed logits lies on the sample in front, and how far they are from alone."""
    ids = torch.randint(3, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(5))
    positions = torch.arange(10).repeat(2, 2)
    kept: list[torch.Tensor] = []

    def keep(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_(True))
        return kept[-1].clone()  # which some models multiply in place

    model.eval()
    handle = model.get_input_embeddings().register_forward_hook(keep)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 10:]
    (gradient,) = torch.autograd.grad((logits * torch.randn_like(logits)).sum(), kept[0])
    handle.remove()
    with torch.no_grad():
        alone = model(input_ids=ids[:, 10:], position_ids=positions[:, :10], use_cache=False).logits
    crossing = gradient[:, :10].norm() / gradient.norm()
    return crossing.item(), ((logits - alone).norm() / (alone - alone.mean(-1, keepdim=True)).norm()).item()


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
