"""Head importance is the same on both sides."""

import numpy as np
import torch

from stellarbyte_jax.training.head_importance import head_importance as jax_importance
from stellarbyte_jax.training.state import abstract_model
from stellarbyte_torch.head_importance import head_importance as torch_importance
from test_convert.models import sensible_params, tiny
from test_convert.torch_side import TorchModel


def test_both_sides_score_alike() -> None:
    config = tiny(num_key_value_heads=2)
    params = sensible_params(config)
    ids = np.random.default_rng(0).integers(3, config.vocab_size, (3, 9)).astype(np.int32)
    next_ids = np.concatenate([ids[:, 1:], np.full((3, 1), -100, np.int32)], axis=1)
    ours = jax_importance(abstract_model(config)[0], params, [{"input_ids": ids, "labels": next_ids}])
    batch = {"input_ids": torch.tensor(ids).long(), "labels": torch.tensor(ids).long()}
    theirs = torch.stack(torch_importance(TorchModel(config, params).model, [batch])).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
