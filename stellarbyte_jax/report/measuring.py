"""Measures what a report asks for of a run."""

from flax import nnx

from stellarbyte.places import Place
from stellarbyte.progress import progress
from stellarbyte.report.architecture import Architecture
from stellarbyte.report.measurements import Latency, Measured
from stellarbyte.report.on_text import OnText, measure_on_text
from stellarbyte.report.pass_work import pass_work
from stellarbyte.report.report import Request
from stellarbyte.report.timing import measure_latency, points
from stellarbyte_jax.evaluation.scorer import JaxScorer
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.report.reader import JaxReader
from stellarbyte_jax.report.speed import JaxEngine
from stellarbyte_jax.report.step import step_statistics

# Runs are saved in float32, in which all other commands read them.
_BYTES = 4


def measure(run_dir: Place, request: Request, architecture: Architecture) -> Measured:
    """The speed of a run's newest checkpoint, what it makes of a text, and a step, as far as they are asked for.

    Raises:
        UserError: the checkpoint cannot be read, there is no text or no such step, or the model gives numbers that are
            not finite.
    """
    statistics = None if request.step is None else step_statistics(run_dir, request.step)
    if not request.latency and request.data is None:
        return Measured(step_statistics=statistics)
    scorer = JaxScorer(run_dir)
    latency = _latency(nnx.merge(scorer.graphdef, scorer.params), architecture) if request.latency else None
    found: OnText | None = None
    if request.data is not None:
        found = measure_on_text(JaxReader(scorer), request.data)
    return Measured(
        latency=latency,
        heads=None if found is None else found.heads,
        attention=None if found is None else found.attention,
        token_losses=None if found is None else found.token_losses,
        step_statistics=statistics,
        remarks=() if found is None else found.remarks,
    )


def _latency(model: ByteForCausalLM, architecture: Architecture) -> Latency:
    def work(phase: str, batch: int, length: int) -> tuple[float, float]:
        return pass_work(architecture, phase, batch, length, _BYTES, _BYTES)

    with progress("timing passes") as update:
        return measure_latency(JaxEngine(model), points(architecture.context, work), update)
