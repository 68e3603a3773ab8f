from pathlib import Path

import pytest
import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from packing_table import rows
from stellarbyte.errors import UserError
from stellarbyte_torch.finetune.packing_check import check_packing

from ..finetuning import config, model_folder, run
from ..lora_models import llama
from ..tiny import SWITCHES, tiny_model

SMALL = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LEAKING = {
    "opt": lambda: OPTForCausalLM(OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=128)),
    "mamba": lambda: MambaForCausalLM(MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2)),
    "gpt_oss": lambda: GptOssForCausalLM(
        GptOssConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, head_dim=8, num_local_experts=4)
    ),
}


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return LEAKING[name]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["rope", *LEAKING])
def test_verdicts(name: str, dtype: torch.dtype) -> None:
    model = (llama() if name == "rope" else made(name)).to(dtype).train()
    verdict = check_packing(model, 97)
    assert verdict.is_exact == (name == "rope"), verdict
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("switch", SWITCHES)
def test_our_own_model_is_exact(switch: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert check_packing(tiny_model(**SWITCHES[switch]).to(dtype), 97).is_exact


class Deaf(torch.nn.Module):
    """A model that was never told of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor) -> None:  # noqa: ARG002
        raise AssertionError


def test_a_model_without_positions() -> None:
    verdict = check_packing(Deaf(), 97)
    assert not verdict.is_exact and "position_ids" in verdict.complaint


def test_finetune_refuses_before_it_trains(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    made("opt").save_pretrained(tmp_path / "opt")
    packed = config(folder, tmp_path / "run", data={"packing": True, "tokenizer": str(folder)})
    packed = type(packed)(**{**vars(packed), "model": str(tmp_path / "opt")})
    with pytest.raises(
        UserError, match=r"data\.packing is not for model .*\(opt\): a packed sample sees the one in fr"
    ):
        run(packed)
    assert not list(tmp_path.glob("run/checkpoints/*")) and not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.long
def test_every_causal_architecture_of_transformers() -> None:
    """The verdict is that of the gradients, whatever the architecture."""
    table = list(rows())
    for row in table:
        print(row)
    tried = [row for row in table if row.verdict is not None and not row.verdict.complaint]
    assert [row.name for row in tried if row.verdict.is_exact != row.is_exact_by_gradient] == []
    exact = {row.name for row in tried if row.verdict.is_exact}
    assert len(tried) > 100
    assert {"llama", "mistral", "qwen3", "qwen3_moe", "mixtral", "gemma2", "gpt2", "stellarbyte"} <= exact
    # falcon keeps them apart from Transformers 5.24 on.
    assert not {"gpt_oss", "opt", "bloom", "lfm2", "jamba", "mamba"} & exact
