"""The training curves of the runs among the models."""

from collections.abc import Sequence

import numpy as np

from stellarbyte.curve_charts import PANELS, curve_charts
from stellarbyte.curves import Curve, RunCurves
from stellarbyte.looks.chart import Chart
from stellarbyte.report.report import Report
from stellarbyte.report.words import Words


def training_charts(runs: Sequence[RunCurves], words: Words, named: bool = False) -> list[Chart]:
    """A chart for each figure that a run has recorded, all runs in it. named: whether the runs' names stand below."""
    translated = {panel.name: words(f"curve.{panel.name}") for panel in PANELS} | {"step": words("step")}
    return curve_charts(runs, words=translated, named=named) if runs else []


def runs_of(reports: Sequence[Report]) -> list[RunCurves]:
    """The curves of those reports that have some."""
    return [
        RunCurves(
            report.name,
            {
                name: Curve(np.array(points.steps), np.array(points.tokens), np.array(points.values))
                for name, points in report.curves.items()
                if points.steps
            },
        )
        for report in reports
        if any(points.steps for points in report.curves.values())
    ]
