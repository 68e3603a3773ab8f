"""Checks that numbers of a run's config are in bounds before anything is computed from them."""

from stellarbyte import float32
from stellarbyte.errors import UserError

# JAX counts steps, rows and tokens in 32 bits, and uses only the lowest 32 bits of a seed.
MOST_COUNT = 2**31 - 1
MOST_SEED = 2**32 - 1

# More than any machine has.
MOST_DEVICES = 2**20
MOST_TOKENS = 2**24  # of a vocabulary; the same as in stellarbyte/contradictions.py
MOST_TOKENS_PER_SHARD = 2**36  # a file of some 256 GiB


def check_whole(name: str, value: int, least: int, most: int = MOST_COUNT, otherwise: str = "") -> None:
    """Refuses a value that is not a whole number from `least` to `most`.

    otherwise: words for the error message that name other values which the caller allows.

    Raises:
        UserError: the value is refused; the error names the field, its value and the bound.
    """
    if isinstance(value, bool | float | str):
        raise UserError(f"{name} {value} must be a whole number{otherwise}")
    if value < least:
        raise UserError(f"{name} {value} must be at least {least}{otherwise}")
    if value > most:
        raise UserError(f"{name} {value} must be at most {most}{otherwise}")


def check_number(name: str, value: float, *, above: float | None = None, least: float | None = None) -> None:
    """Refuses a number that float32 cannot hold, or that is not greater than `above`, or less than `least`.

    Raises:
        UserError: the value is refused; the error names the field, its value and the bound.
    """
    if isinstance(value, bool | str) or not float32.holds(value):
        raise UserError(f"{name} {value} must be a finite number that float32 holds")
    if above is not None and value <= above:
        raise UserError(f"{name} {value} must be greater than {above:g}")
    if least is not None and value < least:
        raise UserError(f"{name} {value} must be at least {least:g}")


def check_seed(name: str, value: int) -> None:
    """Refuses a seed of more than 32 bits, which would draw the same as the seed of its lowest 32.

    Raises:
        UserError: it is not from 0 to 4294967295.
    """
    check_whole(name, value, 0, MOST_SEED)


def require(holds: bool, name: str, value: object, complaint: str) -> None:
    """Refuses a value that breaks a rule: `complaint` follows the field's name and its value.

    Raises:
        UserError: `holds` is false.
    """
    if not holds:
        raise UserError(f"{name} {value} {complaint}")
