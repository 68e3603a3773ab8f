"""From new tokens to text, streamed and cut at stop strings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stellarbyte.sampling import Sampling
from stellarbyte.stop_strings import StopCutter
from stellarbyte_jax.data.tokenizer import StreamDecoder, Tokenizer
from stellarbyte_jax.inference.generate import Generator
from stellarbyte_jax.inference.speculative import SpeculativeGenerator


@dataclass(frozen=True)
class Answer:
    """What continues a prompt, and how many tokens it took: the one that completed a stop string, but no <|SEOS|>."""

    text: str
    new_tokens: int


def generate_text(
    generator: Generator | SpeculativeGenerator,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    on_text: Callable[[int, str], None] | None = None,
) -> list[Answer]:
    """Continue each prompt until <|SEOS|>, by `max_new_tokens`, or up to the first of the stop strings.

    Args:
        generator: the model.
        tokenizer: its tokenizer.
        prompts: token ids, of any lengths from 1.
        max_new_tokens: at most so many are added to each.
        sampling: greedy by default.
        seed: of the draws.
        stop: the text of an answer ends before the first of these that is complete in it, wherever tokens begin and
            end; of two that are complete at the same character, before the longer.
        on_text: called with the row and more of its text, maybe none, as it comes; never with what will be cut off.

    Raises:
        UserError: a stop string or a prompt is empty, or a prompt leaves no room in the context.
    """
    rows = [_Row(tokenizer, generator.config.eos_token_id, stop) for _ in prompts]

    def take(tokens: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        for index, (row, new) in enumerate(zip(rows, tokens, strict=True)):
            text = row.take(map(int, new))
            if on_text is not None:
                on_text(index, text)
        return np.array([row.ended for row in rows])

    watched = bool(stop) or on_text is not None
    tokens = generator.generate(prompts, max_new_tokens, sampling, seed, take if watched else None)
    if not watched:
        take(tokens)
    for index, row in enumerate(rows):
        text = row.finish()
        if on_text is not None:
            on_text(index, text)
    return [Answer("".join(row.pieces), row.new_tokens) for row in rows]


class _Row:
    """One answer as it grows."""

    def __init__(self, tokenizer: Tokenizer, eos_token_id: int, stop: Sequence[str]) -> None:
        self.pieces: list[str] = []
        self.new_tokens = 0
        self.ended = False
        self._eos_token_id = eos_token_id
        self._decoder, self._cutter = StreamDecoder(tokenizer), StopCutter(stop)

    def take(self, token_ids: "map[int]") -> str:
        """More of its text."""
        before = len(self.pieces)
        for token_id in token_ids:
            if self.ended or token_id == self._eos_token_id:
                self.ended = True
                break
            self.new_tokens += 1
            self.pieces.append(self._cutter.push(self._decoder.push(token_id)))
            self.ended = self._cutter.stopped
        return "".join(self.pieces[before:])

    def finish(self) -> str:
        """The rest of its text."""
        rest = ""
        if not self._cutter.stopped:
            rest = self._cutter.push(self._decoder.finish()) + self._cutter.finish()
        self.pieces.append(rest)
        return rest
