"""Chips by the names that JAX gives them."""

import pytest

from stellarbyte.chips import CHIPS, chip_of


@pytest.mark.parametrize(
    ("kind", "name"), [("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"),
                       ("TPU v6 lite", "v6e"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200")]
)  # fmt: skip
def test_a_kind_is_a_chip(kind: str, name: str) -> None:
    assert chip_of(kind) is CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "TPU v3"])
def test_what_is_not_in_the_table_is_none(kind: str) -> None:
    assert chip_of(kind) is None
