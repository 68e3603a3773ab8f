"""Learning rates are those of Transformers' schedules, and of closed forms; phases hold every step once."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import get_scheduler

from stellarbyte_jax.config import OptimizerConfig
from stellarbyte_jax.training.schedules import learning_rate_schedule, phases

WARMUP, STEPS = 4, 24


def config(kind: str, **fields: object) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=2.0, warmup_steps=WARMUP, lr_scheduler_type=kind, **fields)


def rates(optimizer: OptimizerConfig, count: int = STEPS) -> np.ndarray:
    """Of the steps 1 to count, as a compiled program computes them; without JAX they are the same."""
    compiled = np.asarray(jax.jit(learning_rate_schedule(optimizer, STEPS, jnp))(np.arange(count)))
    looked_at = learning_rate_schedule(optimizer, STEPS, np)(np.arange(count))
    assert compiled.dtype == looked_at.dtype == np.float32
    np.testing.assert_allclose(compiled, looked_at, rtol=1e-5, atol=1e-7)
    return compiled


def test_cosine() -> None:
    found = rates(config("cosine"), STEPS + 2)
    np.testing.assert_allclose(found[:4], [0.5, 1.0, 1.5, 2.0])  # the first step learns, the peak is at warmup_steps
    assert found[13] == pytest.approx((2.0 + 0.2) / 2)  # half way between
    np.testing.assert_allclose(found[23:], 0.2, rtol=1e-6)  # the last step, and after
    assert (np.diff(found[3:24]) < 0).all()


@pytest.mark.parametrize(("warmup", "expected"), [(0, [0.75, 0.25, 0.0]), (3, [1 / 3, 2 / 3, 1.0])])
def test_without_warm_up_and_with_nothing_else(warmup: int, expected: list[float]) -> None:
    optimizer = OptimizerConfig(learning_rate=1.0, min_learning_rate_ratio=0.0, warmup_steps=warmup)
    np.testing.assert_allclose(learning_rate_schedule(optimizer, 3, np)(np.arange(3)), expected, atol=1e-6)


# Ours, Transformers' name of it and its own arguments. Both begin a cycle at steps 9, 14 and 19, or 10.67 and 17.33.
THE_SAME = {
    "cosine": (config("cosine", min_learning_rate_ratio=0.0), "cosine", {}),
    "cosine to a tenth": (config("cosine"), "cosine_with_min_lr", {"min_lr_rate": 0.1}),
    "linear": (config("linear", min_learning_rate_ratio=0.0), "linear", {}),
    "constant": (config("constant"), "constant_with_warmup", {}),
    **{
        f"{cycles} cycles": (
            config("cosine_with_restarts", min_learning_rate_ratio=0.0, num_cycles=cycles),
            "cosine_with_restarts",
            {"num_cycles": cycles},
        )
        for cycles in (4, 3)
    },
    **{
        f"wsd, {shape}": (
            config("warmup_stable_decay", min_learning_rate_ratio=0.25, num_decay_steps=8, decay_type=shape),
            "warmup_stable_decay",
            {"num_decay_steps": 8, "decay_type": shape, "min_lr_ratio": 0.25},
        )
        for shape in ("linear", "1-sqrt")
    },
}


@pytest.mark.parametrize("case", THE_SAME)
def test_transformers_has_the_same(case: str) -> None:
    """From the peak on: of the warm-up, theirs begins at 0 or at the last rate, before the first step."""
    ours, name, kwargs = THE_SAME[case]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = get_scheduler(name, optimizer, WARMUP, STEPS, scheduler_specific_kwargs=kwargs)
    theirs = []
    for _ in range(STEPS + 1):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates(ours)[WARMUP - 1 :], theirs[WARMUP:], rtol=1e-5, atol=1e-6)


def linear(t: int) -> float:
    return 0.1 + 0.9 * (24 - t) / 20


def restarts(t: int) -> float:
    cycle = min((t - 4) // 5, 3)
    return 0.1 + (0.8**cycle - 0.1) * (1 + math.cos(math.pi * (t - 4 - 5 * cycle) / 5)) / 2


def a_fifth(t: int) -> float:
    return 1.0 if t <= 20 else 1 - 0.9 * (t - 20) / 4


@pytest.mark.parametrize(
    ("optimizer", "closed_form"),
    [
        (config("linear"), linear),
        (config("cosine_with_restarts", num_cycles=4, cycle_decay=0.8), restarts),
        (config("warmup_stable_decay"), a_fifth),
        (config("constant"), lambda _: 1.0),
    ],
    ids=["linear", "decaying peaks", "a fifth by default", "constant"],
)
def test_closed_forms(optimizer: OptimizerConfig, closed_form: Callable[[int], float]) -> None:
    expected = [2 * (t / WARMUP if t < WARMUP else closed_form(t)) for t in range(1, STEPS + 1)]
    np.testing.assert_allclose(rates(optimizer), expected, rtol=1e-5)


@pytest.mark.parametrize("steps", [64, 100, 12345, 1_000_000])
@pytest.mark.parametrize("cycles", [3, 7, 16])
def test_a_cycle_begins_at_its_peak(cycles: int, steps: int) -> None:
    optimizer = config("cosine_with_restarts", num_cycles=cycles, cycle_decay=0.9)
    cut = phases(optimizer, steps)
    firsts = np.asarray([phase.first for phase in cut if phase.name.startswith("cycle")])
    around = learning_rate_schedule(optimizer, steps, np)(np.stack([firsts - 2, firsts - 1]))
    assert (around[0, 1:] < around[1, 1:]).all(), "a step earlier the rate is still that of the cycle before"
    exact = [k for k in range(1, cycles) if (k * (steps - WARMUP)) % cycles == 0]
    np.testing.assert_allclose(around[1][exact], [2 * 0.9**k for k in exact], rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("kind", ["cosine", "linear", "cosine_with_restarts", "warmup_stable_decay", "constant"])
def test_phases_hold_every_step_once(kind: str, warmup: int) -> None:
    cycles = {"num_cycles": 3} if kind == "cosine_with_restarts" else {}
    optimizer = OptimizerConfig(warmup_steps=warmup, lr_scheduler_type=kind, **cycles)
    for max_steps in (8, 9, 40):
        found = phases(optimizer, max_steps)
        steps = [step for phase in found for step in range(phase.first, phase.last + 1)]
        assert steps == list(range(1, max_steps + 1))
        assert (found[0].name == "warm-up") == (warmup > 0)
