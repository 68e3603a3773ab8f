"""Quantities in words: the right unit, and three digits."""

import pytest

from stellarbyte.report import quantities


@pytest.mark.parametrize(
    ("number", "english", "chinese"),
    [
        (0, "0", "0"),
        (999, "999", "999"),
        (1_234, "1.23 K", "1,234"),
        (99_990, "100 K", "10.0 万"),
        (999_600, "1.00 M", "100 万"),
        (3_262_208, "3.26 M", "326 万"),
        (46_702_792_704, "46.7 B", "467 亿"),
        (671e9, "671 B", "6,710 亿"),
        (1.2e12, "1.20 T", "1.20 万亿"),
        (2.5, "2.50", "2.50"),
    ],
)
def test_counts(number: float, english: str, chinese: str) -> None:
    assert (quantities.count(number, "en"), quantities.count(number, "zh")) == (english, chinese)


def test_sizes_and_works() -> None:
    assert [quantities.size(n) for n in (0, 816, 1023, 1024, 1536, 1 << 20, 3 << 40)] == [
        *("0 B", "816 B", "1,023 B", "1.00 KiB", "1.50 KiB", "1.00 MiB", "3.00 TiB")
    ]
    assert [quantities.flops(n) for n in (0, 20.7e6, 999.6e9)] == ["0 FLOP", "20.7 MFLOP", "1.00 TFLOP"]
    assert quantities.flops(1.8e11, "FLOP/s") == "180 GFLOP/s"


def test_times_and_shares() -> None:
    assert [quantities.seconds(n) for n in (0, 4.2e-7, 0.00999, 0.25, 12)] == [
        "0 s",
        "420 ns",
        "9.99 ms",
        "250 ms",
        "12.0 s",
    ]
    shares = {0: "0 %", 1e-6: "< 0.01 %", 0.0005: "0.05 %", 0.0123: "1.23 %", 0.5: "50.0 %", 1: "100.0 %"}
    assert {number: quantities.share(number) for number in shares} == shares
    assert quantities.plain(None) == "–" and quantities.plain(float("nan")) == "nan"
