"""A folder's model, layer by layer, computes what Transformers computes of the whole; what its layers read is heard."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stellarbyte.errors import UserError
from stellarbyte_torch.quantization.blocks import FolderModel, heard
from stellarbyte_torch.quantization.experts import linears_of
from stellarbyte_torch.quantization.hidden_states import HiddenStates
from stellarbyte_torch.quantization.positions import positions_of
from test_convert.stock import stock_model
from test_torch.tiny import SWITCHES, tiny_model
from tiers import short_tier

CPU = torch.device("cpu")
IDS = torch.randint(3, 90, (3, 20), generator=torch.Generator().manual_seed(0))
IDS[0, 7] = IDS[2, 0] = IDS[2, 12] = 0  # documents begin there
MODELS: dict[str, Any] = {
    **{name: (lambda name=name: stock_model(name)) for name in ("llama", "mistral", "qwen2", "mixtral", "qwen3_moe")},
    **{name: (lambda name=name: tiny_model(**SWITCHES[name])) for name in ("everything", "yarn", "shared_experts")},
    "xpos_learnable": lambda: tiny_model(xpos_learnable=True, parallel_residual=True),
    "tied": lambda: tiny_model(tie_word_embeddings=True, layer_scale_init=0.5),
}


@pytest.mark.parametrize("name", short_tier(list(MODELS), 3, 5, 8))
@torch.no_grad()
def test_layer_by_layer_it_is_the_same_model(name: str, tmp_path: Path) -> None:
    original = MODELS[name]()
    with torch.no_grad():
        for key, parameter in original.named_parameters():
            if "zeta" in key:
                parameter.mul_(0.9)
    original.save_pretrained(tmp_path)
    expected = original.model(IDS, position_ids=positions_of(IDS, 0), use_cache=False).last_hidden_state

    model = FolderModel(tmp_path, CPU)
    states = HiddenStates(tmp_path, (3, 20, model.config.hidden_size), batch_rows=2)
    for rows in states.batches():
        states.write(rows, torch.nn.functional.embedding(IDS[rows], model.embedding))
    for number in range(model.depth):
        with model.layer(number) as layer:
            seen: dict[str, int] = {}
            for rows in states.batches():
                with heard(layer, lambda name, x, seen=seen: seen.update({name: seen.get(name, 0) + x.numel()})):
                    states.write(rows, model.calls(positions_of(IDS[rows], 0))[number](layer, states.read(rows, CPU)))
            # Of those that read the same, an expert's gate stands for both.
            named = {key for key in linears_of(layer) if not (".experts." in key and key.endswith("up_proj"))}
            assert seen.keys() == named
        assert all(parameter.is_meta for parameter in layer.parameters())
    found = model.normed(states.read(slice(0, 3), CPU), model.norm)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert model.is_tied or torch.equal(model.head, original.lm_head.weight)
    states.remove()


def test_other_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="model_type 'gpt2' is none of stellarbyte, llama"):
        FolderModel(tmp_path, CPU)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization_config": {"bits": 4}}')
    with pytest.raises(UserError, match=r"is quantised already .* name the folder of floats that it was made from"):
        FolderModel(tmp_path, CPU)
