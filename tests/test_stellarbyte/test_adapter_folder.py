"""A pickle may run any program: where weights are one alone, the folder is refused."""

from pathlib import Path

import pytest

from stellarbyte.adapter_folder import ADAPTER_WEIGHTS, check_not_pickled
from stellarbyte.errors import UserError


def test_a_pickle_is_refused_unless_the_weights_are_there_as_well(tmp_path: Path) -> None:
    check_not_pickled(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"holds its weights in adapter_model\.bin, a pickle, .*: save the adapter again"
    ):
        check_not_pickled(tmp_path)
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(b"")
    check_not_pickled(tmp_path)
