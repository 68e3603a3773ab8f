"""Looks at the matrices of models by layer and name."""

import numpy as np
import pytest

from stellarbyte.report.stored_arrays import StoredArray
from stellarbyte.report.weights import first_stddev, look

DRAWS = np.random.default_rng(0)


def stored(values: np.ndarray) -> StoredArray:
    return StoredArray(values.shape, lambda: values.astype(np.float32))


def test_by_layer_and_matrix() -> None:
    arrays = {
        "model.embed_tokens.weight": stored(np.eye(6, 4)),
        "model.layers.10.self_attn.q_proj.weight": stored(np.eye(4)),
        "model.layers.2.self_attn.q_proj.weight": stored(np.ones((4, 4))),
        "model.layers.2.input_layernorm.weight": stored(np.ones(4)),
        "model.layers.2.mlp.experts.down_proj": stored(np.stack([np.eye(3), np.ones((3, 3))])),
        "model.layers.2.block_sparse_moe.experts.0.w1.weight": stored(np.eye(5)),
        "model.layers.2.block_sparse_moe.experts.1.w1.weight": stored(np.ones((5, 5))),
    }
    done: list[tuple[int, int]] = []
    found = look(arrays, {}, lambda _: None, lambda *each: done.append(each))
    ranks = {(facts.layer, facts.matrix): facts.effective_rank for facts in found}
    assert ranks == {
        (None, "model.embed_tokens"): pytest.approx(4),
        (2, "self_attn.q_proj"): pytest.approx(1, abs=1e-3),
        (2, "mlp.experts.down_proj"): pytest.approx(2, abs=1e-3),
        (2, "block_sparse_moe.experts.{expert}.w1"): pytest.approx(3, abs=1e-3),
        (10, "self_attn.q_proj"): pytest.approx(4),
    }
    assert [facts.layer for facts in found] == [None, 2, 2, 2, 10]
    assert done[-1] == (6, 6)


def test_the_distance_is_from_the_first_weights_where_they_are_known() -> None:
    values = DRAWS.normal(size=(40, 30))
    arrays = {"a.weight": stored(values), "b.weight": stored(values), "c.weight": stored(values)}
    first = {"a.weight": stored(values / 2), "b.weight": stored(values[:20])}
    found = {facts.matrix: facts.init_distance for facts in look(arrays, first, lambda _: 1.0)}
    assert found == {"a": pytest.approx(1), "b": None, "c": None}
    (drawn,) = look({"a.weight": stored(values)}, {}, lambda _: 1.0)
    assert drawn.init_distance == pytest.approx(0, abs=0.05)


def test_the_deviations_that_models_begin_with() -> None:
    ours = {"initializer_range": 0.02, "num_hidden_layers": 8, "residual": "pre_norm", "model_type": "stellarbyte"}
    assert first_stddev(ours, "self_attn.q_proj") == 0.02
    assert first_stddev(ours, "mlp.experts.down_proj") == first_stddev(ours, "self_attn.o_proj") == 0.02 / 4
    deep = {**ours, "residual": "deepnorm"}
    assert first_stddev(deep, "mlp.gate") == first_stddev(deep, "self_attn.k_proj") == 0.02
    assert first_stddev(deep, "self_attn.v_proj") == pytest.approx(0.02 * 64**-0.25)
    assert first_stddev({**ours, "model_type": "llama"}, "self_attn.o_proj") == 0.02
    assert first_stddev({"model_type": "falcon"}, "x") is None
