"""Passes of a model in PyTorch are those of the model."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from stellarbyte.report import machine
from stellarbyte.report.timing import measure_latency, points
from stellarbyte_torch import ByteConfig, ByteForCausalLM
from stellarbyte_torch.report.speed import TorchEngine

SIZES = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}


def ours(**fields: object) -> ByteForCausalLM:
    return ByteForCausalLM(
        ByteConfig(num_hidden_layers=2, max_position_embeddings=40, position_embedding="rope", **SIZES, **fields)
    ).eval()


@pytest.mark.parametrize("window", [None, 6])
def test_passes(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_BYTES", 1 << 16)
    monkeypatch.setattr(machine, "_SIDE_OF_PROCESSORS", 64)
    found = measure_latency(
        TorchEngine(ours(sliding_window=window)), points(40, lambda *_: (1e6, 1e6), [1, 2]), budget=1e9
    )
    assert [(p.phase, p.batch, p.length) for p in found.points] == [
        (phase, batch, length) for phase, length in (("prefill", 40), ("decode", 18)) for batch in (1, 2)
    ]
    assert all(point.median > 0 and point.compile_seconds is None for point in found.points)
    assert found.machine.flops > 0 and found.machine.bandwidth > 0
    assert found.machine.threads == torch.get_num_threads()
    assert found.remark is None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_stock_model_decodes_behind_a_cache_of_the_length(family: str) -> None:
    names = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40} if family == "gpt2" else {}
    config = AutoConfig.for_model(family, **{**SIZES, "num_hidden_layers": 2, **names})
    engine = TorchEngine(AutoModelForCausalLM.from_config(config).eval())
    assert engine._cache(3, 17).get_seq_length() == 17
    ready = engine.decode(3, 17)
    ready.run()
    ready.close()


def test_layers_that_keep_a_state_need_no_keys() -> None:
    config = AutoConfig.for_model("mamba", vocab_size=60, hidden_size=16, num_hidden_layers=2, state_size=4)
    ready = TorchEngine(AutoModelForCausalLM.from_config(config).eval()).decode(3, 17)
    ready.run()
    ready.close()
