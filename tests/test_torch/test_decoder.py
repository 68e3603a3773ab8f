from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BertConfig, BertLMHeadModel, BloomConfig, GPT2Config, GPTNeoXConfig, LlamaConfig, MptConfig

from stellarbyte.errors import UserError
from stellarbyte_torch.decoder import check_decoder, context_of, end_ids


def a_model(config: Any) -> Any:
    return SimpleNamespace(config=config)


def test_a_model_that_reads_both_ways_is_refused() -> None:
    tiny = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(UserError, match=r"^bert holds a model of type bert whose tokens see what follows"):
        check_decoder(BertLMHeadModel(tiny), "bert")
    tiny.is_decoder = True
    check_decoder(BertLMHeadModel(tiny), "bert")
    check_decoder(a_model(GPTNeoXConfig()), "neox")  # its config says false, and its attention is causal


def test_how_far_a_model_reads() -> None:
    configs = (LlamaConfig(max_position_embeddings=9), GPT2Config(n_positions=8), MptConfig(max_seq_len=7))
    assert [context_of(a_model(config)) for config in configs] == [9, 8, 7]
    assert context_of(a_model(BloomConfig())) is None


def test_every_end_counts_that_anything_names() -> None:
    model = SimpleNamespace(config=LlamaConfig(eos_token_id=3), generation_config=SimpleNamespace(eos_token_id=[3, 5]))
    assert end_ids(model, SimpleNamespace(eos_token_id=7)) == {3, 5, 7}
    assert end_ids(a_model(LlamaConfig(eos_token_id=None)), SimpleNamespace(eos_token_id=None)) == set()
