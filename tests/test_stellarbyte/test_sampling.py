import math

import pytest

from stellarbyte.errors import UserError
from stellarbyte.sampling import Sampling


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, r"temperature -0\.1 must be at least 0"),
        ({"temperature": math.nan}, "temperature nan must be"),
        ({"temperature": math.inf}, "temperature inf must be"),
        ({"temperature": 1e-320}, "temperature 1e-320 must be at least 0 .* and a number that float32 holds"),
        ({"temperature": 1e39}, "a number that float32 holds"),
        ({"repetition_penalty": 1e300}, r"repetition_penalty 1e\+300 must be greater than 0 .* that float32 holds"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty 1e-300 must be"),
        ({"temperature": 1.0, "top_k": 0}, "top_k 0 must be at least 1"),
        ({"min_p": -0.1}, r"min_p -0\.1 must be at least 0 and at most 1"),
        ({"min_p": math.nan}, "min_p nan must be"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty 0\.0 must be greater than 0"),
        ({"repetition_penalty": math.nan}, "repetition_penalty nan must be"),
        ({"top_k": 5}, "top_k 5 has no effect at temperature 0"),
        ({"top_p": 0.9}, r"top_p 0\.9 has no effect at temperature 0"),
        ({"min_p": 0.1, "repetition_penalty": 1.2}, r"min_p 0\.1 has no effect at temperature 0"),
        ({"top_p": 0.0}, r"top_p 0\.0 must be greater than 0 and at most 1"),
        ({"top_p": 1.01}, r"top_p 1\.01 must be greater than 0 and at most 1"),
        ({"top_p": math.nan}, "top_p nan must be"),
    ],
)
def test_values_out_of_range_are_refused(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**values)
