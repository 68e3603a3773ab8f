"""SVG files that stand alone: on a ground of their own, light or dark as the reader's system says."""

import re
from importlib.util import find_spec
from pathlib import Path

from stellarbyte.errors import UserError
from stellarbyte.looks import chart, colours
from stellarbyte.looks.chart import Chart
from stellarbyte.looks.markup import Content, Html, html, tag

# The reader's program has fonts of its own.
_FAMILY = re.compile(r" font-family: [^;\"]*;")
_OPENING = re.compile(r'<svg\b[^>]*viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>')
_MARGIN = 10


def check_drawable(option: str) -> None:
    """Raises UserError with the command to run if matplotlib, which draws what `option` asks for, is missing."""
    if find_spec("matplotlib") is None:
        raise UserError(f"{option} is drawn by matplotlib, which is not installed: pip install 'stellarbyte[plots]'")


def check_folder(option: str, path: Path) -> None:
    """Raises UserError if the file that `option` asks for is in no folder; that is known before the work for it."""
    if not path.resolve().parent.is_dir():
        raise UserError(f"{option} {path} is in no folder that is there: make it, or name another")


def picture(drawn: Chart) -> str:
    """A chart with its title as an SVG file; text stays text.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    with chart.styled(drawn.name):
        return on_ground(chart.svg_file(chart.figure_of(drawn, titled=True)), drawn.description)


def diagram(size: tuple[int, int], description: str, *drawn: Content) -> str:
    """What no chart library draws, as an SVG file: elements in the colours of light, within a width and a height."""
    frame = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {size[0]} {size[1]}"}
    return on_ground(tag("svg", Html("\n"), drawn, Html("\n"), **frame) + "\n", description, "px")


def on_ground(svg: str, description: str, unit: str = "pt") -> str:
    """An SVG file that is drawn in the colours of light, with its ground, its font and its colours in the dark.

    unit: that of its numbers on a screen; matplotlib's are points.
    """
    opening = _OPENING.search(svg)
    assert opening is not None
    width, height = (float(size) + 2 * _MARGIN for size in opening.groups())
    drawn = _FAMILY.sub("", svg[opening.end() :])
    ground = tag("rect", x=-_MARGIN, y=-_MARGIN, width=f"{width:g}", height=f"{height:g}", fill=colours.GROUND)
    style = Html("text{font-family:system-ui,Helvetica,Arial,sans-serif}" + colours.in_the_dark(ground + drawn))
    sizes = f'viewBox="{-_MARGIN} {-_MARGIN} {width:g} {height:g}" width="{width:g}{unit}" height="{height:g}{unit}"'
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = html(Html(f'<svg role="img" {spaces} {sizes}>\n'), tag("title", description), tag("style", style), ground)
    return f"{head}{drawn}"
