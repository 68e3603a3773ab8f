"""The scales of heat maps."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from stellarbyte.report.charts.heat import field, heat


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([[1.0, 3.0]], (1.0, 3.0)),
        ([[0.0, 0.0]], (0.0, 1.0)),
        ([[0.4, 0.4]], (0.0, 0.8)),
        ([[-2.0, -2.0]], (-4.0, 0.0)),
        ([[np.nan, 5.0]], (0.0, 10.0)),
        ([[np.nan, np.nan]], (0.0, 1.0)),
    ],
)
def test_the_scale_holds_every_number(values: list[list[float]], limits: tuple[float, float]) -> None:
    figure = Figure(layout="constrained")
    heat(figure, np.array(values), ["a", "b"], ["0"])
    (image,) = figure.axes[0].images
    assert image.get_clim() == limits


def test_rows_of_different_lengths() -> None:
    found = field([[1.0, None], [2.0]])
    assert found.shape == (2, 2) and found[0, 0] == 1 and np.isnan(found[[0, 1], [1, 1]]).all()
