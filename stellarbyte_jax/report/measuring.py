"""Measures what a report asks for of a run."""

from dataclasses import replace

import jax.numpy as jnp
from flax import nnx

from stellarbyte.places import Place
from stellarbyte.progress import progress
from stellarbyte.report.architecture import Architecture
from stellarbyte.report.measurements import Latency, Measured
from stellarbyte.report.on_text import measure_on_text
from stellarbyte.report.report import Request
from stellarbyte.report.timing import latency_of
from stellarbyte_jax.evaluation.scorer import JaxScorer
from stellarbyte_jax.report.reader import JaxReader
from stellarbyte_jax.report.speed import JaxEngine
from stellarbyte_jax.report.step import step_statistics

# Weights stay in float32, as they are saved, and are cast where they are used; so `generate` has them, too.
_WEIGHT_BYTES = 4


def measure(run_dir: Place, request: Request, architecture: Architecture) -> Measured:
    """The speed of a run's newest checkpoint, what it makes of a text, and a step, as far as they are asked for.

    Raises:
        UserError: the checkpoint cannot be read, there is no text or no such step, or the model gives numbers that are
            not finite.
    """
    statistics = None if request.step is None else step_statistics(run_dir, request.step)
    if not request.latency and request.data is None:
        return Measured(step_statistics=statistics)
    scorer = JaxScorer(run_dir, dtype="float32" if request.dtype == "auto" else request.dtype)
    latency = _latency(scorer, architecture) if request.latency else None
    found = Measured() if request.data is None else measure_on_text(JaxReader(scorer), request.data)
    return replace(found, latency=latency, step_statistics=statistics)


def _latency(scorer: JaxScorer, architecture: Architecture) -> Latency:
    model = nnx.merge(scorer.graphdef, scorer.params)
    cache_bytes = jnp.dtype(model.execution.dtype).itemsize
    with progress("timing passes") as update:
        return latency_of(JaxEngine(model), architecture, _WEIGHT_BYTES, cache_bytes, update)
