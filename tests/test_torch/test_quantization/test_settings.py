"""A setting that is impossible is one sentence, which names the field, its value and the fix."""

from typing import Any

import pytest

from stellarbyte.errors import UserError
from stellarbyte_torch.quantization.settings import QuantizationSettings


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "gguf"}, "method 'gguf' must be one of rtn, gptq"),
        ({"bits": 5}, "bits 5 must be one of 2, 3, 4, 8"),
        ({"group_size": 0}, "group_size 0 must be from 8"),
        ({"group_size": 4}, "group_size 4 must be from 8"),
        ({"method": "smoothquant", "bits": 4}, "bits 4 contradicts method smoothquant"),
        ({"method": "int8-dynamic", "group_size": 32}, "group_size 32 contradicts method int8-dynamic"),
        ({"method": "smoothquant", "symmetric": False}, "symmetric false contradicts method smoothquant"),
        ({"samples": 0}, "samples 0 must be from 1"),
        ({"sequence_length": 0}, "sequence_length 0 must be from 1"),
        ({"damping": 0.0}, "damping 0.0 must be above 0"),
        ({"seed": -1}, "seed -1 must be from 0"),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, dict) else "",
)
def test_mistakes(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        QuantizationSettings.of(**{"method": "gptq", **fields})


def test_a_method_has_its_own_defaults() -> None:
    assert QuantizationSettings.of("awq", bits=3, group_size=32).grid.bits == 3
    both = QuantizationSettings.of("smoothquant")
    assert (both.bits, both.group_size, both.symmetric, both.rounds_activations) == (8, None, True, True)
