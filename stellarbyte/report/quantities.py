"""Writes quantities for people, in English and in Chinese: counts, bytes, FLOPs, times, shares."""

import math
from typing import Literal

Lang = Literal["en", "zh"]

_STEPS = {
    "en": ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " K")),
    "zh": ((1e12, " 万亿"), (1e8, " 亿"), (1e4, " 万")),
}
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SI = ("", "K", "M", "G", "T", "P", "E")
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
# From here on a rounded number would show 1000 of a unit.
_NEXT = 999.5


def count(number: float, lang: Lang) -> str:
    """A number of things to three digits: 3.34 M in English, 334 万 in Chinese."""
    for step, name in _STEPS[lang]:
        if abs(number) >= step * (_NEXT / 1000 if lang == "en" else 0.99995):
            return _three(number / step) + name
    return f"{number:,.0f}" if number == round(number) else _three(number)


def exact(number: int) -> str:
    """A whole number with all its digits."""
    return f"{number:,}"


def size(number: float) -> str:
    """Bytes in powers of 1024."""
    power = _power(number, 1024.0, len(_BYTES))
    return f"{_three(number / 1024.0**power) if power else f'{number:,.0f}'} {_BYTES[power]}"


def flops(number: float, unit: str = "FLOP") -> str:
    """Floating-point operations, or those of a second with unit FLOP/s."""
    power = _power(number, 1000.0, len(_SI))
    return f"{_three(number / 1000.0**power)} {_SI[power]}{unit}"


def seconds(number: float) -> str:
    """A time of less than some minutes."""
    for unit, name in _TIMES:
        if number >= unit * _NEXT / 1000:
            return f"{_three(number / unit)} {name}"
    return "0 s" if number == 0 else f"{number:.2g} s"


def share(number: float) -> str:
    """A part of a whole in percent; small ones with more digits."""
    percent = 100 * number
    if percent == 0 or percent >= 9.95:
        return f"{percent:.1f} %" if percent else "0 %"
    return f"{percent:.2f} %" if percent >= 0.01 else "< 0.01 %"


def plain(number: float | None, digits: int = 4) -> str:
    """A number without a unit; a dash for none, and a word for one that is not finite."""
    if number is None:
        return "–"
    return f"{number:.{digits}g}" if math.isfinite(number) else str(number)


def _power(number: float, base: float, most: int) -> int:
    """The power of the unit in which the number is shown with at most three or four digits before the point."""
    power = 0
    while power < most - 1 and abs(number) / base**power >= base - 0.5:
        power += 1
    return power


def _three(number: float) -> str:
    """Three digits, and all before the point; a small whole number as it is."""
    if abs(number) >= 99.95 or number == 0:
        return f"{number:,.0f}"
    return f"{number:.2f}" if abs(number) < 9.995 else f"{number:.1f}"
