"""Each parameter is of one group, and a group's norm is the root of the sum of its squares."""

import jax
import numpy as np
import pytest
from flax import nnx

from stellarbyte.figures import NORM_GROUPS
from stellarbyte_jax.lora_config import LoRAConfig
from stellarbyte_jax.training.group_norms import group_norms, group_of
from stellarbyte_jax.training.state import abstract_model
from test_jax.tiny import tiny_config

LAYER = "model.layers"


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.embed_tokens.embedding", "embeddings"),
        ("lm_head.kernel", "head"),
        (f"{LAYER}.self_attn.q_proj.kernel", "attention"),
        (f"{LAYER}.self_attn.k_proj.bias", "attention"),
        (f"{LAYER}.self_attn.q_norm.scale", "norms"),
        (f"{LAYER}.mlp_layer_scale.scale", "norms"),
        (f"{LAYER}.input_layernorm.scale", "norms"),
        ("model.norm.scale", "norms"),
        ("model.rotary_emb.zeta", "norms"),
        (f"{LAYER}.mlp.down_proj.kernel", "feed_forward"),
        (f"{LAYER}.mlp.experts.down_proj", "experts"),
        (f"{LAYER}.mlp.gate.kernel", "experts"),
        (f"{LAYER}.mlp.shared_experts.up_proj.kernel", "experts"),
        (f"{LAYER}.mlp.up_proj.lora_B", "adapters"),
    ],
)
def test_groups(name: str, group: str) -> None:
    assert group_of(name) == group


def test_every_parameter_of_every_kind_has_a_group() -> None:
    everything = tiny_config(
        num_experts=4, num_shared_experts=1, moe_intermediate_size=8, layer_scale_init=0.1, xpos_learnable=True,
        qk_norm=True, attention_bias=True, tie_word_embeddings=False,
    )  # fmt: skip
    found = set()
    for config, lora in ((everything, None), (tiny_config(), LoRAConfig("all-linear"))):
        params = nnx.to_pure_dict(abstract_model(config, lora=lora)[1])
        paths = (path for path, _ in jax.tree.leaves_with_path(params))
        found |= {group_of(jax.tree_util.keystr(path, simple=True, separator=".")) for path in paths}
    assert found == set(NORM_GROUPS)


def test_norms() -> None:
    tree = {
        "lm_head": {"kernel": np.float32([3, 4])},
        "model": {"norm": {"scale": np.float32([1])}, "layers": {"input_layernorm": {"scale": np.float32([[2], [2]])}}},
    }
    norms = group_norms(tree, "grad")
    assert {name: float(norm) for name, norm in norms.items()} == {"grad_norm_head": 5.0, "grad_norm_norms": 3.0}
