"""What a quantisation has come to: quantization.json, and a page for the terminal."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from stellarbyte_torch.quantization.block_files import Contents
from stellarbyte_torch.quantization.gate import Comparison, Reference, Running
from stellarbyte_torch.quantization.quantize import LinearError
from stellarbyte_torch.quantization.settings import QuantizationSettings

REPORT = "quantization.json"

FORMAT = 1
"""The number of the report's form; it counts up when a field changes its meaning."""

# Rows, and tokens of each, on which `convert verify` measures a folder again.
PROBE_ROWS, PROBE_LENGTH = 2, 128
# What it may find otherwise there, as a share: sums in another order move a divergence, as does another machine.
PROBE_TOLERANCE = 0.05

# Layers in the terminal's table: the worst ones. The report has them all.
_MOST_LAYERS = 8


@dataclass(frozen=True)
class Limits:
    """What a quantised model may lose at most, as shares: see `Comparison`."""

    increase: float
    """The growth of the perplexity."""

    lost: float
    """The divergence, of what the predictions owe to the context."""


@dataclass(frozen=True)
class Outcome:
    """All that was measured of a quantisation.

    probe: the comparison on the beginning of the first held-out rows alone. running: how the two models run.
    size_before: the bytes of the weights before.
    """

    settings: QuantizationSettings
    contents: Contents
    comparison: Comparison
    probe: Comparison
    before: Reference
    running: tuple[Running, Running]
    size_before: int
    limits: Limits

    @property
    def passes(self) -> bool:
        """Whether no limit is exceeded."""
        return self.comparison.increase <= self.limits.increase and self.comparison.lost <= self.limits.lost


def report(outcome: Outcome, about: dict[str, Any]) -> dict[str, Any]:
    """The content of quantization.json. about: what else there is to say, such as the source and the libraries."""
    contents, comparison = outcome.contents, outcome.comparison
    before, after = comparison.perplexities
    return {
        "verdict": "PASS" if outcome.passes else "FAIL",
        "format": FORMAT,
        **about,
        "how": outcome.settings.words,
        "settings": asdict(outcome.settings),
        "held_out": {
            "rows": len(outcome.before.rows_NT),
            "positions": comparison.positions,
            "perplexity_before": before,
            "perplexity_after": after,
            "perplexity_increase": comparison.increase,
            "max_perplexity_increase": outcome.limits.increase,
            "kl": comparison.kl,
            "context": comparison.context,
            "context_lost": comparison.lost,
            "max_context_lost": outcome.limits.lost,
            "top_1_agreement": comparison.top_1,
        },
        "weights": {
            "all": contents.weights,
            "quantised": contents.quantised,
            "bits_per_weight": contents.nbytes * 8 / contents.weights,
            "kept": {name: list(shape) for name, shape in contents.kept.items()},
        },
        "size": {"before": outcome.size_before, "after": contents.nbytes},
        "running": dict(zip(("before", "after"), map(asdict, outcome.running), strict=True)),
        "probe": {
            "rows": outcome.before.beginning(PROBE_ROWS, PROBE_LENGTH).rows_NT.tolist(),
            "kl": outcome.probe.kl,
            "top_1_agreement": outcome.probe.top_1,
            "tolerance": PROBE_TOLERANCE,
        },
        "layers": [asdict(error) for error in contents.errors],
    }


def page(found: dict[str, Any]) -> str:
    """The report for people: the verdict, what was lost, what was won, and the layers that lost the most."""
    held, weights, size, running = (found[name] for name in ("held_out", "weights", "size", "running"))
    rows = [
        ("method", found["how"]),
        (
            "perplexity",
            f"{held['perplexity_before']:.4f} -> {held['perplexity_after']:.4f} ({held['perplexity_increase']:+.2%}, "
            f"at most {held['max_perplexity_increase']:+.2%}) on {held['positions']:,} tokens",
        ),
        (
            "divergence",
            f"{held['kl']:.2e} nats a token, {held['context_lost']:.2%} of the {held['context']:.2e} that the context "
            f"tells (at most {held['max_context_lost']:.2%}); the same likeliest token at "
            f"{held['top_1_agreement']:.2%}",
        ),
        (
            "quantised",
            f"{weights['quantised'] / weights['all']:.1%} of {weights['all']:,} weights, "
            f"{weights['bits_per_weight']:.2f} bits a weight in all",
        ),
        ("kept as they were", _kept(weights["kept"])),
        ("size", f"{_megabytes(size['before'])} -> {_megabytes(size['after'])}"),
        ("in memory", " -> ".join(_megabytes(running[when]["memory"]) for when in ("before", "after"))),
        ("tokens a second", " -> ".join(f"{running[when]['tokens_per_second']:.1f}" for when in ("before", "after"))),
    ]
    lines = [f"{found['verdict']}: {found.get('model', 'the model')} quantised"]
    lines += [f"  {name:<19}{text}" for name, text in rows]
    return "\n".join([*lines, *_worst([LinearError(**error) for error in found["layers"]])])


def _worst(errors: Sequence[LinearError]) -> list[str]:
    worst = sorted(errors, key=lambda error: -error.error)[:_MOST_LAYERS]
    width = max((len(error.name) for error in worst), default=0)
    lines = [f"  {'error of output':<{width + 2}}{'':>9}{'rounded':>10}"] if worst else []
    for error in worst:
        note = "" if error.rows else "  (no calibration row came here)"
        note = "  (rounding kept)" if error.kept_rounding else note
        lines.append(f"  {error.name:<{width + 2}}{error.error:>9.2%}{error.rounding_error:>10.2%}{note}")
    hidden = len(errors) - len(worst)
    return [*lines, f"  and {hidden} more layers with less, in {REPORT}"] if hidden > 0 else lines


def _kept(kept: dict[str, list[int]]) -> str:
    """The names of what was not quantised, those of all layers once."""
    names = dict.fromkeys(".".join("N" if part.isdecimal() else part for part in name.split(".")) for name in kept)
    return ", ".join(name.removesuffix(".weight") for name in names)


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"
