"""Passes of a model in JAX are those of the model."""

import numpy as np
import pytest
from flax import nnx

from stellarbyte.report import machine
from stellarbyte.report.timing import measure_latency, points
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.report.speed import JaxEngine
from test_jax.tiny import tiny_config
from tiers import short_tier


@pytest.mark.parametrize("window", short_tier([None, 6], 0))
def test_passes(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_BYTES", 1 << 16)
    monkeypatch.setattr(machine, "_SIDE_OF_PROCESSORS", 64)
    config = tiny_config(max_position_embeddings=40, sliding_window=window)
    engine = JaxEngine(ByteForCausalLM(config, rngs=nnx.Rngs(0)))
    found = measure_latency(engine, points(40, lambda *_: (1e6, 1e6), [2]), budget=1e9)
    assert [(p.phase, p.batch, p.length) for p in found.points] == [
        ("prefill", 2, 40),
        ("decode", 2, 18),
    ]
    assert all(point.median > 0 and (point.compile_seconds or 0) > 0 for point in found.points)
    assert found.machine.flops > 0 and found.machine.bandwidth > 0
    assert found.remark is None
    if window is None:
        cache = engine._cache(2, 18)
        assert np.asarray(cache.lengths).tolist() == [18, 18]
