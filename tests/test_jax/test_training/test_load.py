"""A model comes back from its run directory as it was trained."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints.checkpoint import load_params
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.training.load import load_model
from test_jax.tiny import random_tokens, relative_error


def test_the_newest_checkpoint_with_its_tokenizer(finished_run: Path) -> None:
    model, tokenizer, step = load_model(finished_run)
    assert step == 12
    assert all(
        jax.tree.leaves(jax.tree.map(np.array_equal, nnx.to_pure_dict(nnx.state(model)), load_params(finished_run)[0]))
    )
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.decode(tokenizer.encode("deep field é")) == "deep field é"
    logits = jax.eval_shape(lambda: model(random_tokens(model.config, 1, 5)).logits)
    assert logits.shape == (1, 5, model.config.vocab_size)


def test_the_compute_dtype_is_free(finished_run: Path) -> None:
    model, _, _ = load_model(finished_run)
    rounded, _, _ = load_model(finished_run, step=12, dtype="bfloat16")
    assert rounded.execution.dtype == jnp.bfloat16
    ids = random_tokens(model.config, 1, 9)
    error = relative_error(jax.jit(lambda: rounded(ids).logits)(), jax.jit(lambda: model(ids).logits)())
    assert 1e-5 < error < 0.05


def test_a_broken_newest_checkpoint_gives_way_to_the_one_before(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "12" / "params")
    _, _, step = load_model(run)
    assert step == 10
    assert f"stellarbyte: warning: {run}/checkpoints/12 is broken" in capsys.readouterr().err


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_model(tmp_path)
