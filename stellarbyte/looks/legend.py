"""The legend below a chart."""

from typing import Any

_LONGEST = 32


def shortened(name: str) -> str:
    """A name that fits into a legend: of a long one, both its ends."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[-_LONGEST // 2 + 1 :]}"


def legend_below(figure: Any, axes: Any, columns: int = 2) -> None:
    """The names of what is drawn, below it; none if there is but one."""
    found = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # a run's two lines are one
    labels, handles = list(found), list(found.values())
    if len(labels) > 1:
        figure.legend(
            handles,
            [shortened(label) for label in labels],
            loc="outside lower left",
            ncols=columns,
            handlelength=0.9,
            handleheight=0.9,
            handletextpad=0.5,
            columnspacing=1.2,
            labelspacing=0.35,
            borderaxespad=0,
        )
