"""Both sides' pruned caches keep the same tokens."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from stellarbyte.kv_cache.budgets import layer_slots
from stellarbyte.kv_cache.registry import policy
from stellarbyte.kv_cache.settings import KVBudget, KVPruning
from stellarbyte_jax.model.pruned_cache import PrunedCache
from stellarbyte_jax.training.state import abstract_model
from stellarbyte_torch.kv_cache import PrunedCache as TorchPrunedCache
from stellarbyte_torch.modeling_stellarbyte import ByteForCausalLM
from test_convert.models import sensible_params, tiny
from test_convert.torch_side import TorchModel

# So many tokens come at once, and then so many one after another; after these again some at once.
PROMPT, STEPS, MORE, SLOTS = 30, 4, 6, 20

ROWS: list[Any] = [
    ("snap entropy", {"position_embedding": "xpos", "xpos_scale_base": 64.0}),
    pytest.param("heavy entropy", {"sliding_window": 24, "position_embedding": "rope"}, marks=pytest.mark.long),
    pytest.param("expected entropy", {"position_embedding": "none"}, marks=pytest.mark.long),
    ("snap", {"position_embedding": "xpos", "xpos_scale_base": 64.0}),
    pytest.param("expected", {"position_embedding": "xpos", "xpos_scale_base": 64.0}, marks=pytest.mark.long),
    pytest.param("norm", {"position_embedding": "xpos", "xpos_scale_base": 64.0}, marks=pytest.mark.long),
    pytest.param("heavy", {"pruned_heads": ((1,), (0, 1))}, marks=pytest.mark.long),
    pytest.param("snap", {"sliding_window": 24, "position_embedding": "rope"}, marks=pytest.mark.long),
    pytest.param("expected", {"sliding_window": 24, "position_embedding": "rope"}, marks=pytest.mark.long),
    pytest.param("window", {"position_embedding": "none"}, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("name", "fields"), ROWS)
def test_both_sides_keep_the_same_tokens(name: str, fields: dict[str, Any]) -> None:
    config = tiny(**fields, vocab_size=61)
    params = sensible_params(config)
    # No token comes twice: without positions both would have the same key, and rounding would decide between them.
    ids = 3 + np.stack([np.random.default_rng(row).permutation(config.vocab_size - 3) for row in range(2)])
    ids = ids[:, : PROMPT + STEPS + MORE]
    pieces = [ids[:, :PROMPT], *(ids[:, n : n + 1] for n in range(PROMPT, PROMPT + STEPS)), ids[:, -MORE:]]

    graphdef = abstract_model(config)[0]
    read = jax.jit(lambda params, ids, cache: nnx.merge(graphdef, params).model(ids, cache=cache).cache)
    name, _, shape = name.partition(" ")
    pruning = KVPruning(KVBudget(slots=SLOTS), policy(name), shape or "uniform")
    sizes = layer_slots(pruning.shape, SLOTS, config.num_hidden_layers)
    there = PrunedCache.create(config, 2, sizes, pruning.policy, shared=pruning.shared)
    model = TorchModel(config, params).model
    here = TorchPrunedCache(model, SLOTS, pruning.policy, pruning.shape)
    for piece in pieces:
        there = read(params, piece, there)
        with torch.no_grad():
            model(torch.from_numpy(piece), past_key_values=here)
        for layer, (jax_layer, torch_layer) in enumerate(zip(there.layers, here.layers, strict=True)):
            slots: Any = torch_layer.slots  # type: ignore[attr-defined]
            if pruning.shared:
                _check_pool(jax_layer, slots)
                continue
            left = _kv_heads_left(config, layer)
            index_BKC = np.asarray(jax_layer.index)[:, left]
            assert np.array_equal(index_BKC[:, :, : slots.used], slots.index_BKC[:, :, : slots.used])
            keys = np.asarray(jax_layer.keys.data)[:, left][:, :, : slots.used]
            np.testing.assert_allclose(slots.keys[:, :, : slots.used], keys, rtol=0, atol=1e-4 * np.abs(keys).max())


def _check_pool(layer: Any, slots: Any) -> None:
    """Both sides lay the slots that heads share one after another."""
    assert np.array_equal(layer.lanes, slots.lanes_BK)
    B, size = len(slots.counts), layer.pool.index[0].size
    index_BS, there_BS = np.asarray(layer.pool.index).reshape(B, size), slots.index_BKC.reshape(B, size).numpy()
    assert np.array_equal(index_BS, there_BS)
    for name in ("keys", "values"):
        held, there = (
            np.asarray(getattr(layer.pool, name).data).reshape(B, size, -1),
            getattr(slots, name)[:, 0].numpy(),
        )
        is_full_BS = index_BS >= 0
        np.testing.assert_allclose(there[is_full_BS], held[is_full_BS], rtol=0, atol=1e-4 * np.abs(held).max())


def _kv_heads_left(config: Any, layer: int) -> list[int]:
    """The kv heads that some query head still reads; the others stay in JAX, as zeros."""
    gone = set(config.pruned_heads[layer]) if config.pruned_heads else set()
    group = config.num_attention_heads // config.num_key_value_heads
    return [k for k in range(config.num_key_value_heads) if not {*range(k * group, (k + 1) * group)} <= gone]


_REMOTE = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert "stellarbyte_torch" not in sys.modules, "the code is to be the export's own"
from stellarbyte_torch.kv_cache import PrunedCache
cache = PrunedCache(model, 16, "snap", sys.argv[2])
ids = torch.arange(5, 45)[None]
greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
print(model.generate(ids, past_key_values=cache, **greedy)[0, 40:].tolist())
print(type(model).__module__, cache.nbytes)
"""


@pytest.mark.long
@pytest.mark.parametrize("shape", ["uniform", "entropy"])
def test_a_model_by_the_code_of_its_export(shape: str, exported: Any, python: Any, tmp_path: Any) -> None:
    answer, facts = python(_REMOTE, tmp_path, str(exported), shape).splitlines()[-2:]
    module, cache_bytes = facts.split()
    assert module.startswith("transformers_modules.")
    model = ByteForCausalLM.from_pretrained(exported).eval()
    assert int(cache_bytes) == 2 * 2 * model.config.num_hidden_layers * 16 * model.config.head_dim * 4
    cache = TorchPrunedCache(model, 16, "snap", shape)
    options: Any = {"past_key_values": cache, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert str(model.generate(torch.arange(5, 45)[None], **options)[0, 40:].tolist()) == answer
