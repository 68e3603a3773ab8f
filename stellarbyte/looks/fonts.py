"""Finds fonts for a PNG that have every glyph of its texts."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

# Fonts that serve several scripts, the best looking first; any other that is installed comes after them.
_PREFERRED = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "Noto Sans SC",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Noto Sans CJK JP",
    "Arial Unicode MS",
    "SimHei",
    "Heiti TC",
)
# Fonts whose glyphs are pictures of a script's name, or signs of formulas alone.
_NO_TEXT = ("Last Resort", "STIX", "cm", "DejaVu Math")

# What any chart may write beside its own words.
PRINTABLE = "".join(map(chr, range(33, 127))) + "−×·µ…"  # noqa: RUF001

HOW_TO_INSTALL = (
    "on Debian and Ubuntu `apt install fonts-noto-cjk`, on Fedora `dnf install google-noto-sans-cjk-fonts`, on macOS "
    "`brew install --cask font-noto-sans-cjk`, on Windows the language pack of Chinese under Settings, Language"
)


def families_for(text: str) -> list[str] | None:
    """Font families that together have a glyph for every character of `text`; None if what is installed has not.

    One family is preferred, and two are taken where one has not all: matplotlib asks them in turn.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    wanted = {ord(character) for character in text if not character.isspace()}
    with quiet_fonts():
        names = _installed()
        for name in names:
            if wanted <= _glyphs(name):
                return [name]
        missing = wanted - _glyphs(names[0])
        for name in names[1:]:
            if missing <= _glyphs(name):
                return [names[0], name]
    return None


@contextmanager
def quiet_fonts() -> Iterator[None]:
    """Keeps matplotlib from telling the terminal that a family has no bold font: the plain one serves."""
    logger = logging.getLogger("matplotlib.font_manager")
    logger.addFilter(_never)
    try:
        yield
    finally:
        logger.removeFilter(_never)


def _never(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


def drawable(text: str, families: Sequence[str]) -> str:
    r"""The text with each character that none of the families has written as \u4e2d."""
    glyphs = frozenset().union(*(_glyphs(name) for name in families))
    return "".join(_escaped(each) if not each.isspace() and ord(each) not in glyphs else each for each in text)


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


@cache
def _installed() -> list[str]:
    """The families that are installed, in the order of preference.

    matplotlib's own list may be older than a font: files that it does not know yet are added to it.
    """
    from matplotlib import font_manager

    manager = font_manager.fontManager
    known = {entry.fname for entry in manager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        try:
            manager.addfont(path)
        except (OSError, RuntimeError, ValueError):  # a damaged file, or of a kind that it cannot draw
            continue
    names = dict.fromkeys(entry.name for entry in manager.ttflist if not entry.name.startswith(_NO_TEXT))
    preferred = [name for name in _PREFERRED if name in names]
    return preferred + _sans_first(name for name in names if name not in preferred)


def _sans_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: ("Sans" not in name, "Mono" in name, name))


@cache
def _glyphs(family: str) -> frozenset[int]:
    """The characters that both the plain and the bold font of a family have."""
    from matplotlib import font_manager

    plain, bold = (
        font_manager.findfont(font_manager.FontProperties(family=[family], weight=weight), fallback_to_default=False)
        for weight in ("normal", "bold")
    )
    return _cmap(str(plain), _face(plain)) & _cmap(str(bold), _face(bold))


def _face(path: object) -> int:
    """The number of a font within its file; matplotlib before 3.11 draws the first one alone."""
    return int(getattr(path, "face_index", 0))


@cache
def _cmap(path: str, face: int) -> frozenset[int]:
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, fontNumber=face, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except (OSError, TTLibError):
        return frozenset()
