"""Layer numbers as people write them."""

import pytest

from stellarbyte.errors import UserError
from stellarbyte.layer_ranges import layer_numbers, layer_ranges


def test_there_and_back() -> None:
    assert layer_numbers(" 0-3, 8,2", "layers") == [0, 1, 2, 3, 8]
    assert layer_numbers(range(4, 6), "layers") == [4, 5] and layer_numbers(7, "layers") == [7]
    assert layer_ranges([0, 1, 2, 3, 8]) == "0-3,8"


@pytest.mark.parametrize("layers", ["", "a", "3-1", "1-", "-1", "0-999999999", "9" * 400, [], [-1], [1.5], ["x"], True])
def test_what_is_no_list_of_layers(layers: object) -> None:
    with pytest.raises(UserError, match=r"^layers is ") as refused:
        layer_numbers(layers, "layers")  # type: ignore[arg-type]
    assert len(str(refused.value)) < 250
