"""Models and adapters with something in them, which the tests of LoRA share."""

import re
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from test_torch.tiny import tiny_model

WIDTHS: dict[str, int] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**{"vocab_size": 97, "num_key_value_heads": 2, "initializer_range": 0.3, **WIDTHS, **changes})
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


MODELS = {"byte": tiny_model, "llama": llama}


class Mixed(nn.Module):
    """One of each layer that LoRA adapts, but for stacked experts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(97, 16)
        self.convolution = nn.Conv2d(1, 4, 3, padding=1)
        self.conv1d = Conv1D(8, 16)
        self.linear = nn.Linear(8, 5)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.convolution(self.embedding(input_ids)[:, None]).mean(1)
        return self.linear(torch.tanh(self.conv1d(hidden)))


def fill(model: nn.Module, name: str = "default", seed: int = 3) -> nn.Module:
    """Numbers for A and B of one adapter, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if "lora_" in key and name in key.split("."):
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.2
    return model


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model without adapters, to compare with `is_unchanged`."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def is_unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    """Whether the base inside still holds these very weights."""
    wrapped = re.compile(r"\.(base_layer|original_module|token_adapter)\b")
    now = {wrapped.sub("", name): parameter for name, parameter in model.named_parameters()}
    return all(torch.equal(now[name], value) for name, value in before.items())
