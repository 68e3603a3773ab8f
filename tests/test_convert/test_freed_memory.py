"""Memory that is freed is kept for the next array, or goes back to the system."""

import ctypes

import pytest

_ARRAYS = """
import resource
import numpy as np
from convert.freed_memory import {option}

{option}()
for number in range(6):
    np.ones(40 << 20, np.uint8)
    if number == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_what_is_kept_is_not_fetched_again(python, tmp_path):
    options = ("keep_freed", "give_back_large")
    fetched = {option: int(python(_ARRAYS.format(option=option), tmp_path)) for option in options}
    assert fetched["keep_freed"] < 20
    assert fetched["give_back_large"] > 10 * 5, "at least ten pages for each of the arrays, large as pages may be"
