"""Tells what was measured of a model in the lines of a terminal."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from stellarbyte.report.measurements import (
    AttentionFacts,
    Heads,
    Latency,
    MatrixFacts,
    Measured,
    StepStatistics,
    TensorStatistics,
    TokenLosses,
    Weights,
)

# So many lines of a kind; --json has all.
_FEW = 5


def weights_lines(weights: Weights) -> list[str]:
    """Which matrices stand out; empty if none was looked at."""
    matrices = weights.matrices
    if not matrices:
        return []
    lines = [f"weights: {len(matrices)} matrices"]
    bad = [f"{_name(m)} ({m.not_finite:,})" for m in matrices if m.not_finite]
    if bad:
        lines.append(f"  not finite        {_some(bad)}")
    lines += _extremes(matrices, "most small ones", lambda m: m.small, lambda v: f"{v:.1%}")
    lines += _extremes(matrices, "most outliers", lambda m: m.outliers or None, lambda v: f"{v:.2e}")
    lines += _extremes(matrices, "lowest rank", lambda m: _negative(m.rank_share), lambda v: f"{-v:.0%} of its side")
    distance = "furthest from init"
    return lines + _extremes(matrices, distance, lambda m: m.init_distance, lambda v: f"{v:.3g}")


def measured_lines(measured: Measured) -> list[list[str]]:
    """The lines of each part that was measured."""
    parts: tuple[tuple[Any, Callable[[Any], list[str]]], ...] = (
        (measured.latency, _latency),
        (measured.token_losses, _losses),
        (measured.attention, _attention),
        (measured.heads, _heads),
        (measured.step_statistics, _step),
    )
    return [tell(part) for part, tell in parts if part is not None]


def _latency(latency: Latency) -> list[str]:
    machine = latency.machine
    threads = "" if machine.threads is None else f", {machine.threads} threads"
    lines = [
        f"speed: {latency.library} in {machine.dtype} on {machine.name}{threads}, which reaches "
        f"{machine.flops / 1e9:,.0f} GFLOP/s and {machine.bandwidth / 1e9:,.1f} GB/s"
    ]
    for point in latency.points:
        compiled = "" if point.compile_seconds is None else f", compiled in {point.compile_seconds:.1f} s"
        lines.append(
            f"  {point.phase:8}{point.batch:3} x {point.length:<6,}{point.median * 1e3:10,.2f} ms (95 % within "
            f"{point.p95 * 1e3:,.2f}){point.tokens_per_second:12,.0f} tokens/s, {point.reached:4.0%} of the roofline, "
            f"by {point.bound}{compiled}"
        )
    return [*lines, *([f"  {latency.remark}"] if latency.remark else [])]


def _losses(losses: TokenLosses) -> list[str]:
    lines = [
        f"text: {len(losses.tokens)} tokens, loss {losses.mean:.4f}, {losses.bits_per_byte:.4f} bits a byte"
        + (f" ({losses.remark})" if losses.remark else "")
    ]
    worst = sorted((t for t in losses.tokens if t.loss is not None), key=lambda t: -(t.loss or 0))[:_FEW]
    return [*lines, "  least foreseen    " + ", ".join(f"{token.text!r} {token.loss:.2f}" for token in worst)]


def _attention(facts: AttentionFacts) -> list[str]:
    lines = [f"attention over {facts.read} tokens"]
    words = {
        "first": "looks most at the first token",
        "nearest": "looks nearest",
        "farthest": "looks farthest",
        "narrowest": "looks at the fewest tokens",
        "widest": "looks at the most tokens",
    }
    for pattern in facts.patterns:
        first, distance, entropy = (
            of[pattern.layer][pattern.head] or 0.0 for of in (facts.first_token, facts.distance, facts.entropy)
        )
        lines.append(
            f"  layer {pattern.layer}, head {pattern.head} {words[pattern.chosen]}: {first:.0%} on the first, "
            f"{distance:.1f} tokens away, entropy {entropy:.2f}"
        )
    return lines


def _heads(heads: Heads) -> list[str]:
    there = [
        (score, layer, head)
        for layer, row in enumerate(heads.importance)
        for head, score in enumerate(row)
        if score is not None
    ]
    ordered = sorted(there, reverse=True)
    lines = [f"heads: what {len(there)} are worth over {heads.tokens:,} tokens"]
    for name, some in (("most", ordered[:_FEW]), ("least", ordered[::-1][:_FEW])):
        told = ", ".join(f"layer {layer} head {head} {score:.3g}" for score, layer, head in some)
        lines.append(f"  {name:18}{told}")
    return lines


def _step(found: StepStatistics) -> list[str]:
    lines = [
        f"step {found.step}: loss {found.loss:.4f}, gradient {found.grad_norm:.4g}, {found.batch_tokens:,} tokens, "
        f"samples {found.samples[0]}-{found.samples[-1]}, by the weights after step {found.checkpoint}"
    ]
    lines += [f"  {found.remark}"] if found.remark else []
    first = found.first_not_finite
    lines.append("  all numbers are finite" if first is None else f"  first not finite: {first}")
    by_kind: dict[str, dict[str, TensorStatistics]] = {}
    for each in found.tensors:
        by_kind.setdefault(each.kind, {})[each.name] = each
    for title, kinds in (
        ("activation", ("activation", "activation_gradient")),
        ("parameter", ("parameter", "gradient")),
    ):
        lines += _table(title, *(by_kind.get(kind, {}) for kind in kinds))
    return lines


def _table(title: str, values: dict[str, TensorStatistics], gradients: dict[str, TensorStatistics]) -> list[str]:
    width = max(map(len, [*values, title])) + 2
    columns = f"{'largest':>10}{'zeros':>8}{'bad':>8}"
    lines = ["", f"  {title:{width}}{'rms':>10}{columns}{'gradient':>14}{columns}"]
    for name, of_values in values.items():
        lines.append(f"  {name:{width}}{_cells(of_values)}    {_cells(gradients[name])}")
    return lines


def _cells(found: TensorStatistics) -> str:
    return f"{found.rms:10.3g}{found.largest:10.3g}{found.zeros:8.1%}{found.not_finite:8,}"


def _extremes(
    matrices: Sequence[MatrixFacts],
    title: str,
    figure: Callable[[MatrixFacts], float | None],
    word: Callable[[float], str],
) -> list[str]:
    """The matrices of the largest figure."""
    there = [(value, m) for m in matrices if (value := figure(m)) is not None and math.isfinite(value)]
    if not there:
        return []
    largest = sorted(there, key=lambda pair: -pair[0])[:3]
    return [f"  {title:20}" + ", ".join(f"{_name(m)} {word(value)}" for value, m in largest)]


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _name(facts: MatrixFacts) -> str:
    return facts.matrix if facts.layer is None else f"layer {facts.layer} {facts.matrix}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")
