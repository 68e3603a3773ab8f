"""What the optimizer knows of each parameter: its decay, its stack, whether it is a matrix of Muon's, its rate."""

import functools
from typing import Any

import jax
import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.config import LoRAConfig, OptimizerConfig, TrainingConfig
from stellarbyte_jax.training.optimizer import run_optimizer
from stellarbyte_jax.training.param_traits import Trait, param_traits, trained_params
from stellarbyte_jax.training.state import abstract_model
from test_jax.runs import run_config_of
from test_jax.tiny import tiny_config

EXPERTS = tiny_config(
    num_experts=4, num_shared_experts=1, moe_intermediate_size=8, attention_bias=True, xpos_learnable=True
)


@functools.cache
def abstract(lora: LoRAConfig | None = None) -> Any:
    return abstract_model(EXPERTS, lora=lora)[1]


def traits(lora: LoRAConfig | None = None, **rates: float) -> dict[str, Trait]:
    leaves = jax.tree_util.tree_leaves_with_path(param_traits(trained_params(abstract(lora), lora), rates))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def test_decay_is_for_matrices_alone() -> None:
    found = traits()
    decayed = {name for name, trait in found.items() if trait.decays}
    assert {name.rpartition(".")[2] for name in decayed} == {"kernel", "embedding", "gate_up_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in found.keys() - decayed} == {"scale", "zeta", "bias"}
    assert {"model.embed_tokens.embedding", "lm_head.kernel", "model.layers.mlp.gate.kernel"} <= decayed


def test_muon_takes_the_matrices_of_layers_but_for_routers() -> None:
    found = traits() | traits(LoRAConfig(("q_proj",)))
    matrices = {name.removeprefix("model.layers."): trait.stack for name, trait in found.items() if trait.matrix}
    projections = [f"self_attn.{name}_proj.kernel" for name in "qkvo"]
    projections += [f"mlp.shared_experts.{name}_proj.kernel" for name in ("gate", "up", "down")]
    adapter = dict.fromkeys(("self_attn.q_proj.lora_A", "self_attn.q_proj.lora_B"), 1)
    experts = {"mlp.experts.gate_up_proj": 2, "mlp.experts.down_proj": 2}
    assert matrices == dict.fromkeys(projections, 1) | adapter | experts
    assert found["model.layers.self_attn.q_proj.bias"].stack == found["model.layers.mlp.gate.kernel"].stack == 1
    assert found["model.norm.scale"].stack == found["lm_head.kernel"].stack == 0


def test_the_first_entry_that_fits_counts() -> None:
    found = traits(**{"self_attn.q_proj": 3.0, "self_attn": 0.5, "embed_tokens": 0.0})
    rates = {name: trait.rate for name, trait in found.items() if trait.rate != 1}
    of_attention = [name for name in found if ".self_attn." in name]
    assert rates == dict.fromkeys(of_attention, 0.5) | {
        "model.layers.self_attn.q_proj.kernel": 3.0,
        "model.layers.self_attn.q_proj.bias": 3.0,
        "model.embed_tokens.embedding": 0.0,
    }


@pytest.mark.parametrize(
    ("lora", "words", "named"),
    [
        (None, "q_porj", "lm_head.kernel, model.embed_tokens.embedding, model.layers"),
        # Frozen weights are not trained.
        (LoRAConfig(("q_proj",)), "embed_tokens", "model.layers.self_attn.q_proj.lora_A, model.layers.self_attn.q"),
    ],
)
def test_an_entry_that_fits_nothing_is_refused(lora: LoRAConfig | None, words: str, named: str) -> None:
    optimizer = OptimizerConfig(learning_rate_pattern={words: 2.0}, warmup_steps=0)
    config = run_config_of(EXPERTS, TrainingConfig(10, batch_size=8), optimizer)
    object.__setattr__(config, "lora", lora)
    sentence = f"optimizer.learning_rate_pattern.{words} fits no parameter that is trained: these are {named}"
    with pytest.raises(UserError) as refused:
        run_optimizer(config, abstract(lora))
    assert str(refused.value).startswith(sentence)
