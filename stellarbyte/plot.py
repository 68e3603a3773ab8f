"""Draws the curves of one or several runs: a PNG, an SVG, or a page that holds everything it shows."""

from collections.abc import Sequence
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np

from stellarbyte.curves import Curve, RunCurves, smoothed, thinned
from stellarbyte.errors import UserError
from stellarbyte.files import write_text, written_whole

SUFFIXES = (".html", ".svg", ".png")

# Of a curve, as many points as a wide screen can show.
_MOST_POINTS = 2000
# By default a line is the mean over a fiftieth of the run.
_WINDOWS = 50

# Colours that the colour-blind can tell apart (Okabe & Ito 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#F0E442")
# What is drawn in these two follows the page's own colours there, in light and in dark.
_INK, _FAINT = "#1b1c1d", "#c4c6c8"
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 72rem; padding: 0 1rem; }}
svg {{ width: 100%; height: auto; }}
table {{ border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }}
th, td {{ padding: .25rem .9rem .25rem 0; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
th {{ font-weight: 600; border-bottom: 1px solid; }}
</style>
</head>
<body>
<h1>{title}</h1>
{table}
{picture}
</body>
</html>
"""


def plot(runs: Sequence[RunCurves], output: Path, by: str = "step", window: int | None = None) -> None:
    """Draws loss, learning rate, gradient norm and throughput of the runs into a file, in the format of its suffix.

    Args:
        runs: the runs, each in a colour of its own.
        output: a file that ends in .html, .svg or .png; one that is there is replaced.
        by: what the curves are drawn over, "step" or "tokens".
        window: over how many steps the lines are means; None for a fiftieth of each run.

    Raises:
        UserError: the suffix is another, or the file cannot be written.
        ModuleNotFoundError: matplotlib is not installed.
    """
    check_output(output)
    import matplotlib

    with matplotlib.rc_context(_style()):
        figure = _figure(runs, by, window)
        if output.suffix == ".png":
            drawn = BytesIO()
            figure.savefig(drawn, format="png", dpi=160, facecolor="white")
            with written_whole(output) as file:
                file.buffer.write(drawn.getvalue())
        elif output.suffix == ".svg":
            write_text(output, _svg(figure))
        else:
            write_text(output, _page(runs, _svg(figure)))


def check_output(output: Path) -> None:
    """Refuses a file of another suffix; raises UserError."""
    if output.suffix not in SUFFIXES:
        raise UserError(f"{output} has the suffix {output.suffix or 'of no format'}: end it in {', '.join(SUFFIXES)}")


def _style() -> Any:
    from matplotlib import font_manager

    here = set(font_manager.get_font_names())
    return {
        "font.family": [font for font in _FONTS if font in here] or ["sans-serif"],
        "font.size": 9,
        "text.parse_math": False,  # a run may have a $ in its name
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "stellarbyte",  # the same runs are the same file
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), _INK),
        "axes.edgecolor": _INK,
        "grid.color": _FAINT,
    }


def _figure(runs: Sequence[RunCurves], by: str, window: int | None) -> Any:
    from matplotlib.figure import Figure

    panels = [panel for panel in _PANELS if any(name in run.curves for run in runs for name in panel[1:3])]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6 * columns, 3.1 * rows + 0.3), layout="constrained")
    labels: dict[str, Any] = {}
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        _draw(axes, panel, runs, by, window)
        labels |= {name: line for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = [run.name for run in runs if run.name in labels]
    lines = [labels[name] for name in names]
    figure.legend(lines, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
    return figure


# Title, the figure that is a line, the one that is points joined by dashes, and whether the axis is logarithmic.
_PANELS = (
    ("loss (validation dashed)", "loss", "validation_loss", False),
    ("validation bits per byte", "", "validation_bits_per_byte", False),
    ("learning rate", "learning_rate", "", False),
    ("gradient norm", "grad_norm", "", True),
    ("tokens per second", "tokens_per_second", "", False),
)


def _draw(axes: Any, panel: tuple[str, str, str, bool], runs: Sequence[RunCurves], by: str, window: int | None) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator

    title, line, points, logarithmic = panel
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel("tokens" if by == "tokens" else "step")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.6, linewidth=0.6)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for number, run in enumerate(runs):
        look: dict[str, Any] = {"color": _COLOURS[number % len(_COLOURS)], "linewidth": 1.6}
        curve = run.curves.get(line)
        if curve is not None:
            mean = smoothed(curve.values, _window(curve, window) if line != "learning_rate" else 1)
            _line(axes, curve, mean, by, label=run.name, **look)
            if (mean != curve.values).any():
                _line(axes, curve, curve.values, by, **look | {"alpha": 0.25, "linewidth": 0.8})
        curve = run.curves.get(points)
        if curve is not None:
            _line(axes, curve, curve.values, by, label=run.name, marker="o", markersize=3.5, linestyle="--", **look)


def _window(curve: Curve, window: int | None) -> int:
    return window or max(1, len(curve) // _WINDOWS)


def _line(axes: Any, curve: Curve, values: np.ndarray, by: str, **look: Any) -> None:
    places = thinned(values, _MOST_POINTS)
    axes.plot((curve.tokens if by == "tokens" else curve.steps)[places], values[places], **look)


def _svg(figure: Any) -> str:
    drawn = StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return drawn.getvalue()


def _page(runs: Sequence[RunCurves], svg: str) -> str:
    title = "Training of " + ", ".join(run.name for run in runs)
    picture = svg[svg.index("<svg") :].replace(_INK, "currentColor").replace(_FAINT, "#888888")
    return _PAGE.format(title=escape(title), table=_table(runs), picture=picture)


def _table(runs: Sequence[RunCurves]) -> str:
    names = ("run", "steps", "tokens", "loss", "best validation loss", "at step", "bits per byte", "tokens/s")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in _cells(run)) for run in runs)
    return f"<table><tr>{head}</tr>\n" + "\n".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _cells(run: RunCurves) -> list[str]:
    cells = [run.name, f"{run.steps:,}", *[""] * 6]
    if loss := run.curves.get("loss"):
        cells[2:4] = f"{int(loss.tokens[-1]):,}", f"{smoothed(loss.values, _window(loss, None))[-1]:.4f}"
    if validation := run.curves.get("validation_loss"):
        best = int(np.argmin(validation.values))
        cells[4:6] = f"{validation.values[best]:.4f}", f"{int(validation.steps[best]):,}"
    if bits := run.curves.get("validation_bits_per_byte"):
        cells[6] = f"{bits.values.min():.4f}"
    if rate := run.curves.get("tokens_per_second"):
        cells[7] = f"{float(np.median(rate.values)):,.0f}"
    return cells
