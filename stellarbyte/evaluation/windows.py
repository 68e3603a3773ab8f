"""Cuts a long text into windows that a model can read, so that every token is scored once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from stellarbyte.errors import UserError
from stellarbyte.evaluation.scorer import Scorer

# A longer window takes much memory for the logits of its positions; nothing but --window asks for one.
LONGEST_BY_DEFAULT = 2048


class Window(NamedTuple):
    """The tokens from `start` to `stop` of a text with its token before it; the last `scored` of them are scored."""

    start: int
    stop: int
    scored: int


@dataclass(frozen=True)
class Windows:
    """How a text is cut. window: the most tokens read at once. stride: those scored in each window but the first.

    A stride as long as the window is lm-eval's rolling log-likelihood (get_rolling_token_windows with a context of 1):
    a window begins with the last token of the one before, and the last window is moved back until it is full. A
    shorter stride gives every token more context, at the price of reading tokens again.
    """

    window: int
    stride: int

    @classmethod
    def of(cls, scorer: Scorer, window: int | None, stride: int | None) -> "Windows":
        """The windows that a user has asked for.

        window: by default the model's positions, at most 2048. stride: by default the window.

        Raises:
            UserError: the model cannot read so many tokens, or the stride is longer than the window.
        """
        if window is None:
            window = min(scorer.positions, LONGEST_BY_DEFAULT)
        if not 1 <= window <= scorer.positions:
            raise UserError(
                f"--window {window} must be from 1 to {scorer.positions}, the tokens that {scorer.name} reads at once"
                " (max_position_embeddings)"
            )
        stride = window if stride is None else stride
        if not 1 <= stride <= window:
            raise UserError(
                f"--stride {stride} must be from 1 to --window {window}: the tokens between would never be scored"
            )
        return cls(window, stride)

    def cut(self, count: int) -> Iterator[Window]:
        """The windows of a text of `count` tokens, of which number 0 is the token before the text."""
        done = min(self.window, count)
        if done:
            yield Window(0, done + 1, done)
        while done < count:
            scored = min(self.stride, count - done)
            done += scored
            yield Window(done - self.window, done + 1, scored)
