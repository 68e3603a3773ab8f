"""What base an adapter is for: written, read and compared."""

import warnings
from pathlib import Path

import pytest

from stellarbyte.adapter_base import BASE_FILE, AdapterBase, AdapterWarning, check_adapter, sampled
from stellarbyte.errors import UserError

CONFIG = {"model_type": "x", "hidden_size": 8, "rope": {"theta": 1.0, "none": None}, "dtype": "float32", "_secret": 1}


def test_there_and_back(tmp_path: Path) -> None:
    base = AdapterBase.of(CONFIG, sampled([[row / 7, 0.0] for row in range(100)]))
    assert base.config == {"model_type": "x", "hidden_size": 8, "rope": {"theta": 1.0}} and len(base.embeddings) == 16
    assert AdapterBase.read(tmp_path) is None
    base.write(tmp_path)
    assert AdapterBase.read(tmp_path) == base


def test_how_two_bases_compare(tmp_path: Path) -> None:
    base = AdapterBase.of(CONFIG, [1.0, -2.0])
    base.write(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterWarning)
        check_adapter(tmp_path, {}, AdapterBase.of({**CONFIG, "dtype": "bfloat16", "vocab_size": 3}, [1.004, -2.008]))
        check_adapter(tmp_path, {}, AdapterBase.of(CONFIG))  # whose weights are not known
    with pytest.warns(AdapterWarning, match="was trained on other weights"):
        check_adapter(tmp_path, {}, AdapterBase.of(CONFIG, [1.0, -1.5]))
    with pytest.raises(UserError, match="its hidden_size is 8, and this model's is 9"):
        check_adapter(tmp_path, {}, AdapterBase.of({**CONFIG, "hidden_size": 9}))
    (tmp_path / BASE_FILE).unlink()
    with pytest.warns(AdapterWarning, match="does not say what base it is for"):
        check_adapter(tmp_path, {}, base)
