"""The colours of pages and charts, in light and in dark.

A chart is drawn in the colours of light. In a page each of them becomes a CSS variable, so that it follows the reader's
setting; on paper a page is light.
"""

import re

# By the name of its CSS variable: the colour in light and in dark. No two colours of light are the same, so that a
# drawn colour tells which variable it stands for.
_PAPER: dict[str, tuple[str, str]] = {
    "ground": ("#ffffff", "#101317"),
    "panel": ("#f5f7f9", "#181c22"),
    "ink": ("#1b1f24", "#e7eaee"),
    "muted": ("#5a6470", "#9ea8b3"),
    "line": ("#d5dae0", "#323a43"),
    "accent": ("#0a5fa8", "#74b6f2"),
    "good": ("#1a7f4b", "#56c98c"),
    "bad": ("#b3381f", "#f08a70"),
}

# Series that the colour-blind can tell apart (Okabe & Ito 2008), brighter in dark.
_SERIES: tuple[tuple[str, str], ...] = (
    ("#0072b2", "#4ea5de"),
    ("#d55e00", "#f08c4a"),
    ("#009e73", "#3cc79d"),
    ("#cc79a7", "#e3a0c6"),
    ("#e69f00", "#f2bd52"),
    ("#56b4e9", "#93cff4"),
    ("#7f7f7f", "#a9afb6"),
    ("#8c7a00", "#e3d55c"),
    ("#6a51a3", "#a993dd"),
    ("#8c2d04", "#c97a52"),
)

GROUND, PANEL, INK, MUTED, LINE, ACCENT, GOOD, BAD = (light for light, _ in _PAPER.values())
SERIES = tuple(light for light, _ in _SERIES)

_VARIABLES = {**_PAPER, **{f"series-{number}": pair for number, pair in enumerate(_SERIES)}}
_BY_LIGHT = {light: name for name, (light, _) in _VARIABLES.items()}
_ANY = re.compile("|".join(_BY_LIGHT), re.IGNORECASE)


def series(number: int) -> str:
    """The colour of a series, in light; after the last one they begin again."""
    return SERIES[number % len(SERIES)]


def variable(colour: str) -> str:
    """The CSS that stands for a colour of light, for example var(--series-0)."""
    return f"var(--{_BY_LIGHT[colour]})"


def with_variables(svg: str) -> str:
    """The drawing with each colour of light replaced by its CSS variable."""
    return _ANY.sub(lambda found: variable(found[0].lower()), svg)


def in_the_dark(svg: str) -> str:
    """CSS for an SVG file that gives the colours of light that it is drawn in their look in the dark.

    They stay colours, because many programs that show SVG know no CSS variables.
    """
    rules = "".join(
        f'[{kind}="{light}"],[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in _VARIABLES.values()
        for kind in ("fill", "stroke")
        if f'{kind}="{light}"' in svg or f"{kind}: {light}" in svg
    )
    return f"@media screen and (prefers-color-scheme:dark){{{rules}}}"


def variables() -> str:
    """CSS that sets the variables: light, dark on a screen whose reader wants it dark, and light on paper."""
    light, dark = ("".join(f"--{name}:{pair[which]};" for name, pair in _VARIABLES.items()) for which in (0, 1))
    return (
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        "@media print{:root{color-scheme:light}}"
    )
