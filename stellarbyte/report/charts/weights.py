"""Heat maps of the weights: layer by matrix."""

from functools import partial

import numpy as np

from stellarbyte.looks.chart import Chart
from stellarbyte.report.charts.heat import heat
from stellarbyte.report.measurements import MatrixFacts
from stellarbyte.report.report import Report
from stellarbyte.report.words import Words

# The figures that are drawn, and whether each is a share.
FIGURES = (("small", True), ("outliers", True), ("rank_share", True), ("init_distance", False))

_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate", "gate_proj", "up_proj", "gate_up_proj", "down_proj")


def weight_charts(report: Report, words: Words) -> list[Chart]:
    """A heat map for each figure of the layers' matrices that is known."""
    if report.weights is None:
        return []
    matrices = [each for each in report.weights.matrices if each.layer is not None]
    layers = sorted({each.layer for each in matrices if each.layer is not None})
    names = sorted(dict.fromkeys(each.matrix for each in matrices), key=_order)
    if not matrices:
        return []
    charts = []
    for figure, percent in FIGURES:
        values = np.full((len(layers), len(names)), np.nan)
        for each in matrices:
            value = getattr(each, figure)
            if value is not None and each.layer is not None:
                values[layers.index(each.layer), names.index(each.matrix)] = value
        if np.isnan(values).all():
            continue
        title = words(f"chart.weights.{figure}")
        draw = partial(
            heat,
            values=values,
            columns=[short(name) for name in names],
            rows=[str(layer) for layer in layers],
            labels=("", words("layer")),
            percent=percent,
        )
        alt = words(
            "chart.weights.figure.alt", title=title, model=report.name, extreme=_extreme(matrices, figure, words)
        )
        charts.append(Chart(f"weights-{figure.replace('_', '-')}", title, alt, draw, height=250))
    return charts


def _order(matrix: str) -> int:
    """The place of a matrix in the order of computation; files list them by the alphabet, and others come last."""
    name = short(matrix)
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


def short(matrix: str) -> str:
    """The last word of a matrix's name: q_proj for self_attn.q_proj.weight."""
    return matrix.removesuffix(".weight").rpartition(".")[2]


def _extreme(matrices: list[MatrixFacts], figure: str, words: Words) -> str:
    most = max((each for each in matrices if getattr(each, figure) is not None), key=lambda each: getattr(each, figure))
    return words("layer.matrix", layer=most.layer or 0, matrix=most.matrix)
