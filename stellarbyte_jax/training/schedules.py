"""The learning rate of each global step, and the phases that a run goes through."""

from collections.abc import Callable
from typing import Any, NamedTuple

from stellarbyte_jax.optimizer_config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, max_steps: int, xp: Any) -> Callable[[Any], Any]:
    """A function from the number of optimizer steps done to the learning rate of the next one, float32.

    With t = steps done + 1, the rate is peak · t / warmup_steps up to t = warmup_steps, so it is not 0 in the first
    step. Then it follows the config's schedule, all of which but `constant` reach peak · min_learning_rate_ratio at
    t = max_steps, the last step, and stay there. Where Transformers has the same schedule, its rate at t is the same.

    xp: the array library, jax.numpy for a compiled program, or numpy to look at a schedule without JAX.
    """
    peak, warmup, shape = config.learning_rate, config.warmup_steps, _SHAPES[config.lr_scheduler_type]

    def learning_rate(steps_done: Any) -> Any:
        t = xp.asarray(steps_done, xp.float32) + 1
        after_warmup = shape(config, max_steps, t, xp)
        return peak * xp.where(t < warmup, t / max(warmup, 1), after_warmup)

    return learning_rate


class Phase(NamedTuple):
    """A part of a run, from its first step to its last, counted from 1 and both included."""

    name: str
    first: int
    last: int


def phases(config: OptimizerConfig, max_steps: int) -> list[Phase]:
    """The phases of a run's learning rate, in order; together they hold every step once."""
    warmup, kind = config.warmup_steps, config.lr_scheduler_type
    starts = {"warm-up": 1}
    if kind == "cosine_with_restarts":
        span, count = max_steps - warmup, config.num_cycles
        firsts = {f"cycle {k + 1} of {count}": warmup - (-k * span // count) for k in range(count)}
        # The peak of the first cycle is the last step of the warm-up.
        starts |= {name: max(first, warmup + 1) for name, first in firsts.items()}
    elif kind == "warmup_stable_decay":
        starts |= {"stable": warmup + 1, "decay": max_steps - config.decay_steps(max_steps) + 1}
    else:
        starts["stable" if kind == "constant" else "decay"] = warmup + 1
    ends = [first - 1 for first in [*starts.values()][1:]] + [max_steps]
    return [Phase(name, first, last) for (name, first), last in zip(starts.items(), ends, strict=True) if first <= last]


def _progress(config: OptimizerConfig, max_steps: int, t: Any, xp: Any) -> Any:
    return xp.clip((t - config.warmup_steps) / max(max_steps - config.warmup_steps, 1), 0, 1)


def _cosine(config: OptimizerConfig, max_steps: int, t: Any, xp: Any) -> Any:
    ratio = config.min_learning_rate_ratio
    return ratio + (1 - ratio) * (1 + xp.cos(xp.pi * _progress(config, max_steps, t, xp))) / 2


def _linear(config: OptimizerConfig, max_steps: int, t: Any, xp: Any) -> Any:
    ratio = config.min_learning_rate_ratio
    return ratio + (1 - ratio) * (1 - _progress(config, max_steps, t, xp))


def _cosine_with_restarts(config: OptimizerConfig, max_steps: int, t: Any, xp: Any) -> Any:
    """Half a cosine in each cycle, from the cycle's own peak down to the last rate (SGDR, arXiv:1608.03983)."""
    ratio, cycles, warmup = config.min_learning_rate_ratio, config.num_cycles, config.warmup_steps
    length = (max_steps - warmup) / cycles
    # Comparing is exact; a division by the length may round to below a whole number, where a cycle begins.
    starts = xp.asarray([warmup + k * (max_steps - warmup) / cycles for k in range(1, cycles)], xp.float32)
    cycle = xp.sum(t[..., None] >= starts, axis=-1).astype(xp.float32)
    progress = xp.clip((t - (warmup + cycle * length)) / length, 0, 1)
    return ratio + (config.cycle_decay**cycle - ratio) * (1 + xp.cos(xp.pi * progress)) / 2


def _warmup_stable_decay(config: OptimizerConfig, max_steps: int, t: Any, xp: Any) -> Any:
    ratio, steps = config.min_learning_rate_ratio, config.decay_steps(max_steps)
    progress = xp.clip((t - (max_steps - steps)) / steps, 0, 1)
    left = 1 - (xp.sqrt(progress) if config.decay_type == "1-sqrt" else progress)
    return ratio + (1 - ratio) * left


def _constant(config: OptimizerConfig, max_steps: int, t: Any, xp: Any) -> Any:
    del config, max_steps
    return xp.ones_like(t)


_SHAPES: dict[str, Callable[[OptimizerConfig, int, Any, Any], Any]] = {
    "cosine": _cosine,
    "linear": _linear,
    "cosine_with_restarts": _cosine_with_restarts,
    "warmup_stable_decay": _warmup_stable_decay,
    "constant": _constant,
}
