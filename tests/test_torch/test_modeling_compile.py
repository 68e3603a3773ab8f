"""torch.compile without graph breaks, torch.export, and a compiled step of decoding with a static cache."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import StaticCache

from .tiny import SWITCHES, relative_error, tiny_model, tokens

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "dense": {},
    "xpos_learnable": {"xpos_learnable": True, "parallel_residual": True, "layer_scale_init": 0.5},
    "dynamic": {"position_embedding": "rope", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    **{name: SWITCHES[name] for name in ("window", "shared_experts", "everything")},
}


def long(name: str) -> Any:
    """A case of the long tier: one of each kind is enough to see that the graph is whole."""
    return pytest.param(name, marks=pytest.mark.long)


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", [*map(long, ("dense", "xpos_learnable", "dynamic")), "everything"])
def test_one_graph_forward_and_backward(name: str) -> None:
    ids = tokens(2, 12)
    plain, compiled = (tiny_model(**ARCHITECTURES[name]).train() for _ in range(2))
    expected = plain(ids, labels=ids, use_cache=False)
    actual = torch.compile(compiled, fullgraph=True, backend="aot_eager")(ids, labels=ids, use_cache=False)
    assert relative_error(actual.logits, expected.logits) < 1e-5
    expected.loss.backward()
    actual.loss.backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for parameter_name, parameter in compiled.named_parameters():
        assert relative_error(parameter.grad, gradients[parameter_name]) < 1e-5, parameter_name


@pytest.mark.parametrize("name", [*map(long, ("dense", "shared_experts")), "window"])
@torch.no_grad()
def test_decoding_with_a_static_cache_is_one_graph_for_all_steps(name: str) -> None:
    model = tiny_model(**ARCHITECTURES[name])
    ids = tokens(2, 14)
    cache = StaticCache(config=model.config, max_cache_len=16)
    model(ids[:, :8], past_key_values=cache)
    counter = CompileCounter()
    step = torch.compile(model, fullgraph=True, backend=counter)
    steps = [
        step(ids[:, [position]], past_key_values=cache, position_ids=torch.full((1, 1), position)).logits
        for position in range(8, 14)
    ]
    assert relative_error(torch.cat(steps, dim=1), model(ids).logits[:, 8:]) < 1e-5
    # transformers' sliding layer tells the step at which its window is full from those after it.
    assert counter.frame_count == (2 if name == "window" else 1)


@pytest.mark.parametrize("name", ["dynamic", long("shared_experts")])
def test_exported_program_takes_other_lengths(name: str) -> None:
    model = tiny_model(**ARCHITECTURES[name])
    batch, length = torch.export.Dim("batch", min=2, max=8), torch.export.Dim("length", min=2, max=128)
    program = torch.export.export(
        model,
        (tokens(3, 9),),
        {"use_cache": False},
        dynamic_shapes={"input_ids": {0: batch, 1: length}, "use_cache": None},
        strict=False,
    )
    ids = tokens(2, 80)  # past max_position_embeddings, where rope_scaling dynamic begins to grow
    exported: Any = program.module()(ids, use_cache=False)
    assert relative_error(exported.logits, model(ids).logits) < 1e-5
