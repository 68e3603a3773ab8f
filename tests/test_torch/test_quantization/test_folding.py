"""The folding law: whatever the switches, a model whose scales are folded computes the same; each row of the table."""

import dataclasses
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from convert.config import to_hf
from convert.families.registry import FAMILIES
from stellarbyte_torch import ByteConfig, ByteForCausalLM
from stellarbyte_torch.quantization.experts import linears_of
from stellarbyte_torch.quantization.folding import exact, fold
from stellarbyte_torch.quantization.scaling_table import TABLE, Row, reaches
from test_convert.stock import stock_model
from test_convert.switches import few_rows, grid, name_of
from test_torch.tiny import relative_error
from tiers import short_tier

GRID = grid()


@cache
def model_of(name: str) -> PreTrainedModel:
    """A model in which every part has its say: no norm is 1, no bias 0."""
    if name in FAMILIES:
        return stock_model(name)
    model = ByteForCausalLM(ByteConfig(**to_hf(GRID[name], "float32"))).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or "layer_scale" in key:
                parameter.uniform_(0.4, 1.4, generator=generator)
            elif key.endswith("bias") or "embed" in key:
                parameter.normal_(0.0, 0.5, generator=generator)
            elif "zeta" not in key:
                parameter.normal_(0.0, 1.2 * parameter.shape[-1] ** -0.5, generator=generator)
    return model


@cache
def logits_of(name: str) -> torch.Tensor:
    return logits(model_of(name))


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.randint(3, 37, (2, 12), generator=torch.Generator().manual_seed(2))
    return model(ids, use_cache=False).logits


@torch.no_grad()
def error_after_folding(name: str, table: tuple[Row, ...], keep_spread: bool = True) -> tuple[float, int]:
    """How far the logits move when random scales are folded wherever the table allows, and how often that is."""
    model, generator, count = model_of(name), torch.Generator().manual_seed(3), 0
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for layer in model.model.layers:
        linears = linears_of(layer)
        for reach in reaches(layer, model.config, table):
            channels = (
                len(linears[reach.source].weight)
                if reach.source in linears
                else len(layer.get_submodule(reach.source).weight)
            )
            used = reach if keep_spread else dataclasses.replace(reach, spread=None)
            scale = torch.exp(torch.empty(channels).uniform_(-1.4, 1.4, generator=generator))
            fold(used, scale, layer, linears)
            count += 1
    error = relative_error(logits(model), logits_of(name))
    model.load_state_dict(before)
    return error, count


FEW = {*map(name_of, few_rows()), "qwen2", "mixtral"}
NAMES = [*GRID, *FAMILIES]


@pytest.mark.parametrize("name", short_tier(NAMES, *(place for place, name in enumerate(NAMES) if name in FEW)))
def test_a_folded_model_computes_the_same(name: str) -> None:
    error, count = error_after_folding(name, TABLE)
    assert error < 1e-5
    config = model_of(name).config
    norms = 0 if getattr(config, "residual", "pre_norm") == "deepnorm" else 2 - getattr(config, "parallel_residual", 0)
    assert count >= config.num_hidden_layers * (norms + 2)


def mutations() -> Iterator[tuple[str, tuple[Row, ...]]]:
    """Tables with one mistake each: a consumer is forgotten, or a row holds for models in which it is not true."""
    for place, row in enumerate(TABLE):
        for consumer in row.consumers if len(row.consumers) > 1 else ():
            left = tuple(name for name in row.consumers if name != consumer)
            changed = dataclasses.replace(row, consumers=left)
            yield f"{place}-without-{consumer}", (*TABLE[:place], changed, *TABLE[place + 1 :])
        for switch in row.when:
            when = {name: value for name, value in row.when.items() if name != switch}
            changed = dataclasses.replace(row, when=when)
            yield f"{place}-whatever-{switch}", (*TABLE[:place], changed, *TABLE[place + 1 :])
        if len(row.consumers) == 1:
            wrong = row.consumers[0].replace("down_proj", "gate_proj").replace("self_attn.o_proj", "mlp.gate_proj")
            changed = dataclasses.replace(row, consumers=(wrong,))
            yield f"{place}-reads-{wrong}", (*TABLE[:place], changed, *TABLE[place + 1 :])


MUTATIONS = dict(mutations())


@pytest.mark.parametrize("mutation", short_tier(list(MUTATIONS), 0, 6, 11, -1 % len(MUTATIONS)))
def test_a_mistake_in_a_row_is_caught(mutation: str) -> None:
    for name in (*GRID, *FAMILIES):
        try:
            error, _ = error_after_folding(name, MUTATIONS[mutation])
        except RuntimeError:  # the shapes do not fit
            model_of.cache_clear()
            return
        if error > 1e-3:
            return
    pytest.fail("no model of the grid notices")


def test_query_heads_that_share_values_are_told_apart_from_values() -> None:
    caught = 0
    for name, config in GRID.items():
        if config.num_key_value_heads == config.num_attention_heads or config.pruned_heads is not None:
            continue
        with pytest.raises(RuntimeError):  # more input columns than values
            error_after_folding(name, TABLE, keep_spread=False)
        model_of.cache_clear()
        caught += 1
    assert caught


@pytest.mark.parametrize("name", short_tier(["llama", "mixtral", "qwen2"], 1))
def test_a_saved_model_loses_nothing(name: str) -> None:
    """Floats that stay on disk as bfloat16 are not rounded a second time."""
    model = model_of(name).__class__(model_of(name).config).bfloat16().float()
    layer = model.model.layers[0]
    linears = linears_of(layer)
    generator = torch.Generator().manual_seed(4)
    for reach in reaches(layer, model.config):
        outputs = layer.get_submodule(reach.source).weight if reach.source not in linears else None
        channels = len(linears[reach.source].weight if outputs is None else outputs)
        wished = torch.exp(torch.empty(channels).uniform_(-1.4, 1.4, generator=generator))
        scale = exact(reach, wished, layer, linears, torch.bfloat16)
        assert ((scale / wished).log2().abs() <= 0.51).all()
        fold(reach, scale, layer, linears)
    floats = ("norm", "bias", "mlp.gate.")
    kept = {key: tensor for key, tensor in layer.named_parameters() if any(word in key for word in floats)}
    assert kept
    for key, tensor in kept.items():
        saved = tensor.bfloat16().float()
        # float32 divides a norm by the quotient that gives back what is saved, but for its own last bit.
        assert torch.equal(saved, tensor) or ("norm" in key and torch.allclose(saved, tensor, rtol=2e-7, atol=0)), key
