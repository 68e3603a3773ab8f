"""Draws the error of each quantised layer, beside that of plain rounding, as an SVG."""

from collections.abc import Sequence
from io import StringIO

from stellarbyte_torch.quantization.quantize import LinearError

PICTURE = "quantization.svg"

# Colours that the colour-blind can tell apart (Okabe & Ito 2008).
_OURS, _ROUNDED = "#0072B2", "#D55E00"
_MOST_LABELS = 24


def draw(title: str, errors: Sequence[LinearError]) -> str:
    """The SVG: layers in their order from left to right, errors relative to the output, on a logarithmic scale.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "stellarbyte", "font.size": 9, "axes.spines.top": False}):
        figure = Figure(figsize=(max(7.0, 0.09 * len(errors)), 3.6), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(errors))
        axes.plot(places, [error.rounding_error for error in errors], "x", color=_ROUNDED, label="plain rounding")
        axes.plot(places, [error.error for error in errors], "o", color=_OURS, markersize=4, label="this folder")
        axes.set_yscale("log")
        axes.set_ylabel("error of the output")
        step = max(1, -(-len(errors) // _MOST_LABELS))
        axes.set_xticks(places[::step], [_short(error.name) for error in errors[::step]], rotation=90)
        axes.grid(axis="y", alpha=0.3)
        axes.set_title(title)
        axes.legend()
        drawn = StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()


def _short(name: str) -> str:
    """A layer's number and its last name: `3 q_proj` of model.layers.3.self_attn.q_proj."""
    parts = name.split(".")
    numbers = [part for part in parts if part.isdecimal()]
    return " ".join([*numbers, parts[-1]])
