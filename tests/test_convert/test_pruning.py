"""Pruning is one thing on both sides: the same scores, and by the same cuts the same weights, bit for bit."""

from typing import Any

import numpy as np
import pytest
import torch

from convert import config as hf_config
from convert import names, weights
from convert.families import fit
from convert.families.registry import FAMILIES
from stellarbyte.pruning.choice import Wanted, choose
from stellarbyte.pruning.cuts import Cuts
from stellarbyte.pruning.measure import parameters
from stellarbyte.pruning.scores import Statistics, scores
from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.pruning import cut
from stellarbyte_jax.training.importance import measure_importance as jax_importance
from stellarbyte_jax.training.state import abstract_model
from stellarbyte_torch.pruning.cutting import cut as torch_cut
from stellarbyte_torch.pruning.importance import measure_importance as torch_importance
from test_convert.models import bits, sensible_params, tiny
from test_convert.parity import relative
from test_convert.torch_side import TorchModel

MOE: dict[str, Any] = {"num_experts": 4, "num_shared_experts": 1, "moe_intermediate_size": 8}
CASES: dict[str, tuple[ByteConfig, Cuts]] = {
    "dense": (
        tiny(num_hidden_layers=4, attention_bias=True, qk_norm=True),
        Cuts(layers=(2,), heads={0: (0, 1), 3: (2,)}, channels={0: (0, 7, 19), 1: tuple(range(1, 20, 2))}),
    ),
    "pruned before": (
        tiny(num_hidden_layers=3, pruned_heads=((1,), (), (0, 1)), intermediate_size=(20, 12, 7)),
        Cuts(layers=(1,), heads={0: (0,)}, channels={0: (3, 4, 5), 2: (0, 6)}),
    ),
    "even": (
        tiny(num_hidden_layers=3, position_embedding="rope"),
        Cuts(heads=dict.fromkeys(range(3), (2, 3)), channels={layer: (layer, 9) for layer in range(3)}),
    ),
    "deepnorm": (tiny(num_hidden_layers=4, residual="deepnorm", attention_bias=True), Cuts(layers=(0, 3))),
    "experts": (
        tiny(num_hidden_layers=3, residual="deepnorm", parallel_residual=True, **MOE),
        Cuts(layers=(0,), heads={1: (3,)}, experts={1: (0, 2), 2: (1, 3)}),
    ),
}


@pytest.mark.parametrize(
    "fields", [{"pruned_heads": ((1,), (2, 3)), "intermediate_size": (9, 20)}, MOE], ids=["dense", "experts"]
)
def test_both_sides_score_alike(fields: dict[str, Any]) -> None:
    config = tiny(**fields)
    params = sensible_params(config)
    ids = np.random.default_rng(0).integers(3, config.vocab_size, (3, 9)).astype(np.int32)
    next_ids = np.concatenate([ids[:, 1:], np.full((3, 1), -100, np.int32)], axis=1)
    ours = jax_importance(abstract_model(config)[0], params, [{"input_ids": ids, "labels": next_ids}])
    batch = {"input_ids": torch.tensor(ids).long(), "labels": torch.tensor(ids).long()}
    theirs = torch_importance(TorchModel(config, params).model, [batch])
    assert ours.tokens == theirs.tokens == 24
    for name in Statistics.__dataclass_fields__:
        if name != "tokens":
            for layer, (a, b) in enumerate(zip(getattr(ours, name), getattr(theirs, name), strict=True)):
                a = a[: len(b)] if name.startswith("channel") else a  # stacked, all layers are the widest's
                np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6, err_msg=f"{name} {layer}")
    for importance in ("taylor", "wanda"):
        kinds = ("heads", "experts") if config.num_experts else ("heads", "channels")
        wanted = Wanted(0.8, kinds, multiple=1)
        assert choose(vars(config), scores(ours, importance), wanted) == choose(
            vars(config), scores(theirs, importance), wanted
        )


@pytest.mark.parametrize("case", CASES)
def test_both_sides_cut_alike_and_conversion_takes_it_there_and_back(case: str) -> None:
    config, cuts = CASES[case]
    params = sensible_params(config)
    smaller_config, smaller = cut(config, params, cuts)
    assert params["model"]["layers"]["self_attn"]["q_proj"]["kernel"].shape[0] == config.num_hidden_layers
    model = torch_cut(TorchModel(config, params).model, cuts)
    assert hf_config.from_hf(model.config.to_dict(), "the smaller model") == smaller_config
    ours, theirs = weights.to_hf(smaller, smaller_config), model.state_dict()
    assert ours.keys() == {key for key in theirs if key in ours}
    for key, tensor in ours.items():
        assert np.asarray(tensor).tobytes() == theirs[key].numpy().tobytes(), key
    assert bits(weights.from_hf(ours, smaller_config)) == bits(smaller)
    there = sum(int(np.prod(tensor.shape)) for tensor in names.hf_tensors(smaller_config))
    assert there == parameters(vars(smaller_config)).left(vars(smaller_config))
    assert there == parameters(vars(config)).left(vars(config), cuts)
    if case == "even":
        assert (smaller_config.pruned_heads, smaller_config.num_attention_heads) == (None, 2)
        assert not fit.fit(FAMILIES["llama"], smaller_config).misfits, "a stock export holds it"
        assert smaller["model"]["layers"]["self_attn"]["q_proj"]["kernel"].shape == (3, 24, 16)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_rest_computes_what_it_did(case: str) -> None:
    """Against the model before, with the branches of what goes set to 0, and layers that go passed over."""
    config, cuts = CASES[case]
    before = TorchModel(config, sensible_params(config)).model
    ids = torch.randint(3, config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    found, whole = torch_cut(before, cuts)(ids, use_cache=False).logits, before(ids, use_cache=False).logits
    for layer, block in enumerate(before.model.layers):
        for head in cuts.heads.get(layer, ()):
            place = block.self_attn.heads[0].index(head) * config.head_dim
            block.self_attn.o_proj.weight[:, place : place + config.head_dim] = 0
        if layer in cuts.channels:
            block.mlp.down_proj.weight[:, list(cuts.channels[layer])] = 0
        if layer in cuts.experts:
            # A router that never chooses them; with k of the rest the weights are those of a smaller softmax.
            block.mlp.gate.weight[list(cuts.experts[layer])] = 0
            block.mlp.gate.register_forward_hook(without(list(cuts.experts[layer]), config.num_experts_per_tok))
    kept = cuts.kept_layers(vars(config))
    before.model.layers = torch.nn.ModuleList(before.model.layers[layer] for layer in kept)
    before.config.num_hidden_layers = len(kept)  # alpha stays what it was when the layers were made
    assert relative(found, before(ids, use_cache=False).logits) < 1e-5
    assert relative(found, whole) > 1e-2


def without(gone: list[int], k: int) -> Any:
    def choose_again(_module: Any, _inputs: Any, output: Any) -> Any:
        logits = output[0].clone()
        logits[:, gone] = -torch.inf
        values, experts = logits.topk(k, dim=-1)
        return logits, values.softmax(-1), experts

    return choose_again
