"""Which cases of a test are in the short tier."""

from collections.abc import Sequence
from typing import Any

import pytest


def short_tier(cases: Sequence[Any], *places: int) -> list[Any]:
    """The cases of a parametrized test; those that are not at one of these places are for the long tier alone."""
    return [case if place in places else _long(case) for place, case in enumerate(cases)]


def _long(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.long)
