"""The weights of runs by Hugging Face's names, as they are and as they were at first."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import stellarbyte_jax.report
from stellarbyte.report.find import find_subject
from stellarbyte.report.weights import WITHOUT_JAX, look, weights_of
from stellarbyte_jax.checkpoints.checkpoint import load_params
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.report.weights import weight_arrays
from stellarbyte_jax.training.pretrain import pretrain


def test_what_a_run_holds(finished_run: Path) -> None:
    arrays, first = weight_arrays(finished_run)
    layers = load_params(finished_run)[0]["model"]["layers"]
    kernel = layers["self_attn"]["q_proj"]["kernel"][1]
    name = "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_array_equal(arrays[name].read(), kernel.T)
    assert arrays[name].shape == kernel.T.shape
    assert arrays.keys() == first.keys()
    assert {name: array.shape for name, array in arrays.items()} == {n: a.shape for n, a in first.items()}
    # Its first loss came of the weights that are drawn again: see test_step.
    moved = {facts.matrix: facts.init_distance for facts in look(arrays, first, lambda _: None) if facts.layer == 1}
    assert all(distance is not None and 0.01 < distance < 10 for distance in moved.values()), moved


@pytest.mark.usefixtures("one_device", "traced_once")
def test_a_run_that_began_with_another_has_that_ones_weights_first(
    finished_run: Path, run_config: Callable[..., RunConfig]
) -> None:
    config = dataclasses.replace(run_config(training={"max_steps": 5}), init_from=str(finished_run))
    assert pretrain(config)
    assert weight_arrays(Path(config.output_dir))[1] == {}  # it holds several, and the newest may be another by now


def test_without_jax_a_sentence_takes_their_place(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = find_subject(finished_run)
    monkeypatch.setitem(sys.modules, "stellarbyte_jax.report.weights", None)
    monkeypatch.delattr(stellarbyte_jax.report, "weights", raising=False)
    found = weights_of(subject)
    assert found is not None and (found.matrices, found.remark) == ((), WITHOUT_JAX)
    with pytest.raises(ModuleNotFoundError):
        weights_of(subject, everything=True)
