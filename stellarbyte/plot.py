"""Draws the curves of one or several runs: a PNG, an SVG, or a page that holds everything it shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stellarbyte.curve_charts import curve_charts, draw_panel, panels_of, window_of
from stellarbyte.curves import RunCurves, smoothed
from stellarbyte.errors import UserError
from stellarbyte.files import write_text, written_whole
from stellarbyte.looks import chart, colours, fonts
from stellarbyte.looks.document import document, figure, swatch
from stellarbyte.looks.markup import Html, html, table, tag
from stellarbyte.looks.picture import on_ground

SUFFIXES = (".html", ".svg", ".png")


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
    if output.suffix == ".html":
        write_text(output, _page(runs, by, window))
        return
    if output.suffix == ".svg":
        names = ", ".join(run.name for run in runs)
        with chart.styled("stellarbyte"):
            write_text(output, on_ground(chart.svg_file(_figure(runs, by, window, None)), f"Training of {names}"))
        return
    families = fonts.families_for("".join(run.name for run in runs) + fonts.PRINTABLE) or ["DejaVu Sans"]
    with chart.styled("stellarbyte", families), written_whole(output) as file:
        file.buffer.write(chart.png_file(_figure(runs, by, window, families)))


def check_output(output: Path) -> None:
    """Refuses a file of another suffix; raises UserError."""
    if output.suffix not in SUFFIXES:
        raise UserError(f"{output} has the suffix {output.suffix or 'of no format'}: end it in {', '.join(SUFFIXES)}")


def _figure(runs: Sequence[RunCurves], by: str, window: int | None, families: Sequence[str] | None) -> Any:
    """All panels together; in a PNG, what no font of `families` can write is escaped."""
    from matplotlib.figure import Figure

    panels = panels_of(runs)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    drawn = Figure(figsize=(6 * columns, 3.1 * rows + 0.3), layout="constrained")
    labels: dict[str, Any] = {}
    for place, panel in enumerate(panels):
        axes = drawn.add_subplot(rows, columns, place + 1)
        axes.set_title(panel.name, loc="left", fontweight="bold")
        draw_panel(axes, panel, runs, by, window, by)
        labels |= {name: line for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    names = [run.name for run in runs if run.name in labels]
    lines = [labels[name] for name in names]
    shown = names if families is None else [fonts.drawable(name, families) for name in names]
    drawn.legend(lines, shown, loc="outside lower center", ncols=min(4, len(names)))
    return drawn


def _page(runs: Sequence[RunCurves], by: str, window: int | None) -> str:
    charts = [figure(each.title, Html(chart.svg(each))) for each in curve_charts(runs, by, window)]
    body = html(_table(runs), tag("div", charts, class_="charts"))
    return document("Training of " + ", ".join(run.name for run in runs), body)


def _table(runs: Sequence[RunCurves]) -> Html:
    head = ("run", "steps", "tokens", "loss", "best validation loss", "at step", "bits per byte", "tokens/s")
    rows = []
    for number, run in enumerate(runs):
        name, *cells = _cells(run)
        rows.append([(swatch(colours.series(number)), name), *cells])
    return table("Where the runs stand", head, rows)


def _cells(run: RunCurves) -> list[str]:
    cells = [run.name, f"{run.steps:,}", *[""] * 6]
    if loss := run.curves.get("loss"):
        cells[2:4] = f"{int(loss.tokens[-1]):,}", f"{smoothed(loss.values, window_of(loss, None))[-1]:.4f}"
    if validation := run.curves.get("validation_loss"):
        best = int(np.argmin(validation.values))
        cells[4:6] = f"{validation.values[best]:.4f}", f"{int(validation.steps[best]):,}"
    if bits := run.curves.get("validation_bits_per_byte"):
        cells[6] = f"{bits.values.min():.4f}"
    if rate := run.curves.get("tokens_per_second"):
        cells[7] = f"{float(np.median(rate.values)):,.0f}"
    return cells
