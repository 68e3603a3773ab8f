"""Draws a chart by matplotlib: as SVG for a page, or as PNG."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import BytesIO, StringIO
from typing import Any

from stellarbyte.looks import colours
from stellarbyte.looks.fonts import quiet_fonts
from stellarbyte.looks.markup import sound

# Points of SVG; a page shows a chart this wide on a phone, and a little larger on a desk.
WIDTH, HEIGHT = 300.0, 200.0

_PNG_DOTS = 160
_PNG_MARGIN = 0.12
# What a browser needs not, and what may stand in a page but once.
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_DROPPED = re.compile(
    r' xmlns(?::xlink)?="[^"]*"| version="1\.1"|(?<=<g) id="[^"]*"| width="[\d.]+pt" height="[\d.]+pt"|'
    r"<metadata>.*?</metadata>\s*|font-family: [^;\"]*;? ?| transform=\"rotate\(-0 [^\"]*\)\"",
    re.DOTALL,
)
_SPACES = re.compile(r"\s*\n\s*")
_TAG = re.compile(r"<[^>]*>")
_LONG_NUMBER = re.compile(r"\d+\.\d{3,}")


@dataclass(frozen=True)
class Chart:
    """A chart that can be drawn.

    Attributes:
        name: the name of its file, without a suffix.
        title: what stands above it.
        description: what it shows, in words, for who cannot see it.
        draw: draws it on an empty figure.
        width, height: its size in points.
    """

    name: str
    title: str
    description: str
    draw: Callable[[Any], None]
    width: float = WIDTH
    height: float = HEIGHT


def svg(chart: Chart) -> str:
    """The chart as an SVG element of a page: text stays text in the page's font, colours are CSS variables.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    with styled(chart.name):
        drawn = _HEAD.sub("", svg_file(figure_of(chart)), count=1)
    start = f'<svg role="img" aria-label="{escape(chart.description)}"'
    body = _SPACES.sub("\n", _DROPPED.sub("", drawn)).replace("xlink:href", "href")
    body = _TAG.sub(lambda tag: _LONG_NUMBER.sub(_shorter, tag[0]), body)
    return colours.with_variables(sound(body.replace("<svg", start, 1)))


def _shorter(number: re.Match[str]) -> str:
    """A coordinate to a hundredth of a point, which no eye sees; half of a page would be further digits."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def png(chart: Chart, families: Sequence[str]) -> bytes:
    """The chart as a PNG file on white, with its title, in the first of the font families that has a glyph.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    with styled(chart.name, families):
        return png_file(figure_of(chart, titled=True))


def texts(chart: Chart) -> str:
    """All characters that its PNG shows, numbers at the axes included."""
    with styled(chart.name):
        figure = figure_of(chart, titled=True)
        figure.draw_without_rendering()
        return texts_of(figure)


def texts_of(figure: Any) -> str:
    """All characters on a figure that has been laid out."""
    from matplotlib.text import Text

    return "".join(sorted(set("".join(text.get_text() for text in figure.findobj(Text)))))


@contextmanager
def styled(salt: str, families: Sequence[str] | None = None) -> Iterator[None]:
    """Sets matplotlib's style for the figures that are made within.

    salt: what ids in an SVG depend on. families: the fonts of a PNG; of an SVG the reader's program has its own, and
    here glyphs are only measured.
    """
    import matplotlib

    ink = ("text.color", "axes.labelcolor", "axes.titlecolor")
    style: Any = {
        "font.family": list(families or ("DejaVu Sans",)),
        "font.size": 10.5,
        "axes.titlesize": 11,
        "axes.labelsize": 10.5,
        "legend.fontsize": 10,
        "text.parse_math": False,  # a model may have a $ in its name
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": salt,  # the same chart is the same file
        "axes.formatter.use_mathtext": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        **dict.fromkeys(ink, colours.INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), colours.LINE),
        **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), colours.MUTED),
        **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 10),
        "axes.edgecolor": colours.LINE,
        "grid.color": colours.LINE,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
        "axes.facecolor": "none",
    }
    with matplotlib.rc_context(style), quiet_fonts(), warnings.catch_warnings():
        if families is None:
            warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def svg_file(figure: Any) -> str:
    """A figure as an SVG file with no ground and no date."""
    drawn = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    return drawn.getvalue()


def png_file(figure: Any) -> bytes:
    """A figure as a PNG file on white."""
    drawn = BytesIO()
    figure.savefig(
        drawn, format="png", dpi=_PNG_DOTS, facecolor=colours.GROUND, bbox_inches="tight", pad_inches=_PNG_MARGIN
    )
    return drawn.getvalue()


def figure_of(chart: Chart, titled: bool = False) -> Any:
    """A figure on which the chart is drawn, with its title above it if that is wanted."""
    from matplotlib.figure import Figure

    height = chart.height + (22 if titled else 0)
    figure = Figure(figsize=(chart.width / 72, height / 72), layout="constrained")
    if titled:
        figure.suptitle(chart.title, x=0.01, ha="left", fontweight="bold", fontsize=11.5)
    chart.draw(figure)
    return figure
