"""Continues texts by texts, which are streamed and cut at stop strings."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from stellarbyte.sampling import Sampling
from stellarbyte.stop_strings import StopCutter
from stellarbyte_jax.data.stream_decoder import StreamDecoder
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.inference.generate import Generator
from stellarbyte_jax.inference.speculative import SpeculativeGenerator


@dataclass(frozen=True)
class Answer:
    """The continuation of a prompt.

    Attributes:
        text: the continuation, without the prompt.
        prompt_tokens: the number of tokens in the prompt, with the one that begins a document.
        new_tokens: the number of tokens in the continuation. A token that completed a stop string counts, the
            one that ends a document does not.
        cut_at: the number of tokens for which the context had room, if the answer was cut off there; otherwise None.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    cut_at: int | None = None


def generate_text(
    generator: Generator | SpeculativeGenerator,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    on_text: Callable[[int, str], None] | None = None,
) -> list[Answer]:
    """Continues documents that begin with the prompts until they end, `max_new_tokens`, or the first stop string.

    Args:
        generator: the model, ready to generate.
        tokenizer: the model's tokenizer.
        prompts: the texts to continue; each may be empty.
        max_new_tokens: the largest number of tokens that is added to each. If the context has room for fewer tokens
            after the longest prompt, no prompt gets more than these.
        sampling: how tokens are drawn; greedy by default.
        seed: the seed of the draws.
        stop: strings before which an answer ends. The one that is complete first decides, wherever tokens begin and
            end; if two are complete at the same character, the longer one does.
        on_text: called with the row and the next part of its text, which may be empty. That text is never cut off
            later.

    Raises:
        UserError: a stop string is empty, a prompt is not valid text, or a prompt leaves no room in the context.
    """
    prompt_ids = [[tokenizer.bos_token_id, *tokenizer.encode(prompt)] for prompt in prompts]
    # The generator itself refuses a prompt that leaves no room at all.
    room = max(1, generator.context - max(map(len, prompt_ids)))
    count = min(max_new_tokens, room)
    eos = (generator.config.eos_token_id,)
    rows = [GrowingText(tokenizer, eos, stop, continues=bool(prompt)) for prompt in prompts]

    def take(tokens: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        for index, (row, new) in enumerate(zip(rows, tokens, strict=True)):
            text = row.take([int(token) for token in new])
            if on_text is not None:
                on_text(index, text)
        return np.array([row.ended for row in rows])

    watched = bool(stop) or on_text is not None
    tokens = generator.generate(prompt_ids, count, sampling, seed, take if watched else None)
    if not watched:
        take(tokens)
    for index, row in enumerate(rows):
        text = row.finish()
        if on_text is not None:
            on_text(index, text)
    return [
        Answer(
            row.text,
            len(ids),
            row.new_tokens,
            count if count < max_new_tokens and not row.ended and row.new_tokens == count else None,
        )
        for ids, row in zip(prompt_ids, rows, strict=True)
    ]


class GrowingText:
    """One answer as it grows.

    Args:
        tokenizer: the model's tokenizer.
        end_ids: tokens that end the answer and do not belong to it.
        stop: strings; the answer ends before the first of them.
        continues: whether the answer goes on from other text, instead of beginning one of its own.

    Attributes:
        text: the text so far, without the part that is held back because it may begin a stop string.
        new_tokens: the number of tokens so far, with the one that completed a stop string.
        ended: whether a token or a stop string has ended the answer.
    """

    def __init__(
        self, tokenizer: Tokenizer, end_ids: Collection[int], stop: Sequence[str], *, continues: bool = False
    ) -> None:
        self.text = ""
        self.new_tokens = 0
        self.ended = False
        self._end_ids = end_ids
        self._decoder, self._cutter = StreamDecoder(tokenizer, continues=continues), StopCutter(stop)

    def take(self, token_ids: Sequence[int]) -> str:
        """Takes new tokens, and returns the next part of the text."""
        before = len(self.text)
        for token_id in token_ids:
            if self.ended or token_id in self._end_ids:
                self.ended = True
                break
            self.new_tokens += 1
            self.text += self._cutter.push(self._decoder.push(token_id))
            self.ended = self._cutter.stopped
        return self.text[before:]

    def finish(self) -> str:
        """The rest of the text; call it when no more tokens come."""
        if self._cutter.stopped:
            return ""
        rest = self._cutter.push(self._decoder.finish()) + self._cutter.finish()
        self.text += rest
        return rest
