"""Windows: every token once, with as much before it as there can be; and lm-eval's, to the token."""

import pytest

from stellarbyte.errors import UserError
from stellarbyte.evaluation.windows import Windows

from .scorers import ByteScorer


@pytest.mark.parametrize("stride", [1, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 17, 50])
def test_every_token_is_scored_once_in_a_window_that_fits(count: int, stride: int) -> None:
    scored = []
    for number, window in enumerate(Windows(8, stride).cut(count)):
        assert 0 <= window.start < window.stop <= count + 1
        assert window.stop - window.start <= 8 + 1
        if number:
            assert window.stop - window.start == 8 + 1
            assert window.scored <= stride
        scored += range(window.stop - window.scored, window.stop)
    assert scored == list(range(1, count + 1))


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_they_are_those_of_lm_eval(stride: int) -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="make test-all installs lm-eval")
    for count in (0, 1, 7, 8, 9, 16, 17, 50):
        tokens = list(range(100, 100 + count))
        theirs = list(utils.get_rolling_token_windows(tokens, 0, 8, 8 - stride + 1))
        ours = []
        for start, stop, scored in Windows(8, stride).cut(count):
            sequence = [0, *tokens][start:stop]
            ours.append((sequence[:-1], sequence[len(sequence) - scored :]))
        assert ours == theirs


def test_defaults_and_what_is_refused() -> None:
    assert Windows.of(ByteScorer(512), None, None) == Windows(512, 512)
    assert Windows.of(ByteScorer(1 << 17), None, 100) == Windows(2048, 100)
    assert Windows.of(ByteScorer(1 << 17), 4096, None) == Windows(4096, 4096)
    for window, stride, words in (
        (513, None, "--window 513 must be from 1 to 512, the tokens that bytes reads at once"),
        (0, None, "--window 0 must be from 1"),
        (100, 101, "--stride 101 must be from 1 to --window 100"),
        (None, 0, "--stride 0 must be from 1 to --window 512"),
    ):
        with pytest.raises(UserError, match=words):
            Windows.of(ByteScorer(512), window, stride)
