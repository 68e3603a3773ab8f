"""Says at the end of a run what it has done, in a few lines."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from stellarbyte.figures import VALIDATION, figures_in, finite
from stellarbyte.host_memory import peak_resident_bytes
from stellarbyte.validation_table import Validations, best_of
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.training.watching.metrics import MetricsLog

# The parts of a run's time, as StepClock has them.
_PARTS = {"steps": "steps", "validation": "validating", "checkpoint": "saving", "compile": "compiling"}
_WIDTH = 12


def summary(config: RunConfig, log: MetricsLog, step: int) -> str:
    """What a run that has ended has done, one figure a line, and what may come next."""
    clock, run_dir, done = log.clock, config.output_dir, step - log.first_step
    rows = {"trained": _trained(config, log, step)}
    if done:
        rows["time"] = _time(clock.elapsed, clock.totals)
    if clock.steps:
        seconds = clock.totals["steps"]
        rows["speed"] = f"{clock.tokens / seconds:,.0f} tokens/s, {seconds / clock.steps:.3g} s a step"
    rows |= _validation(log.validations)
    peak = peak_resident_bytes()
    if peak is not None and done:
        rows["peak memory"] = f"{peak / 2**20:,.0f} MiB of the process"
    text = "\n".join(f"{name:<{_WIDTH}} {value}" for name, value in rows.items())
    head = f"{step} steps done; checkpoints, config and metrics in {run_dir}"
    return f"{head}\n{text}\n{'next':<{_WIDTH}} " + f"\n{'':<{_WIDTH}} ".join(_next(config))


def _trained(config: RunConfig, log: MetricsLog, step: int) -> str:
    seen = "" if log.tokens_seen is None else f", {log.tokens_seen:,} tokens"
    since = f", the last {step - log.first_step} of them now" if log.first_step else ""
    return f"{step} of {config.training.max_steps} steps{seen}{since}"


def _time(elapsed: float, totals: Mapping[str, float]) -> str:
    parts = {words: totals.get(part, 0.0) for part, words in _PARTS.items()}
    parts["other"] = max(0.0, elapsed - sum(parts.values()))
    shares = {words: f"{words} {seconds / max(elapsed, 1e-9):.0%}" for words, seconds in parts.items()}
    shares["steps"] += f" (waiting for data {totals.get('data', 0.0) / max(elapsed, 1e-9):.0%})"
    return f"{timedelta(seconds=round(elapsed))}: " + ", ".join(
        share for words, share in shares.items() if words == "steps" or not share.endswith(" 0%")
    )


def _validation(validations: Validations) -> dict[str, str]:
    """The last validation's figures, each with the best one if that is another."""
    if not validations:
        return {}
    last = max(validations)
    words = []
    for figure in figures_in(validations[last], VALIDATION):
        value, best = finite(validations[last].get(VALIDATION + figure.name)), best_of(figure, validations)
        if value is not None and best is not None:
            better = "" if best[0] == last else f" (best {figure.number(best[1])} at step {best[0]})"
            words.append(f"{figure.in_words(value)}{better}")
    return {"validation": ", ".join(words)} if words else {}


def _next(config: RunConfig) -> list[str]:
    run = config.output_dir
    name = Path(run).name
    export = f"stellarbyte convert to-hf {run} {name}-hf"
    if config.lora is not None:
        export = f"stellarbyte convert adapter to-peft {run} {name}-adapter"
    evaluate = [] if config.data.validation_fraction == 0 else [f"stellarbyte evaluate {run}"]
    return [*evaluate, f"stellarbyte generate {run} --prompt '…'", f"stellarbyte plot {run}", export]
