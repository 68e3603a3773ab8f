"""Turns new tokens into text, which is streamed and cut at stop strings."""

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
    """The text that continues a prompt, and its number of tokens.

    A token that completed a stop string counts, <|SEOS|> does not.
    """

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
    """Continues each prompt until <|SEOS|>, by at most `max_new_tokens`, or up to the first of the stop strings.

    Args:
        generator: the model, ready to generate.
        tokenizer: the model's tokenizer.
        prompts: token ids of each prompt; prompts may have any lengths from 1.
        max_new_tokens: the largest number of tokens that is added to each.
        sampling: how tokens are drawn; greedy by default.
        seed: the seed of the draws.
        stop: strings before which an answer ends. The one that is complete first decides, wherever tokens begin and
            end; if two are complete at the same character, the longer one does.
        on_text: called with the row and the next part of its text, which may be empty. That text is never cut off
            later.

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
        """Takes new tokens, and returns the next part of the text."""
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
        """The rest of the text."""
        rest = ""
        if not self._cutter.stopped:
            rest = self._cutter.push(self._decoder.finish()) + self._cutter.finish()
        self.pieces.append(rest)
        return rest
