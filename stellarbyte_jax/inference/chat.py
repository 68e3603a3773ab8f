"""Talks with the model of a pretraining run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from stellarbyte.chat.session import BASE, ChatSession, Continuation, Finish, turn_ends
from stellarbyte.errors import UserError
from stellarbyte.kv_cache.settings import KVPruning
from stellarbyte.sampling import Sampling
from stellarbyte.stop_strings import check_stop_strings
from stellarbyte_jax.bounds import check_seed
from stellarbyte_jax.data.chat_template import chat_tokenizer
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.inference.generate import Generator
from stellarbyte_jax.inference.text import GrowingText
from stellarbyte_jax.model.causal_lm import ByteForCausalLM

# A conversation grows with each answer. Its room is this many tokens, doubled until it is enough, so that few sizes are
# ever compiled.
_SMALLEST_ROOM = 64


class JaxChatSession(ChatSession):
    """Talks with a run's model. Answers end at <|SEOS|>, or where the chat template ends a turn.

    Args:
        model: the model, with its compute dtype.
        tokenizer: the tokenizer that the model was trained with.
        sampling: how answers are drawn; greedy by default.
        max_new_tokens: the largest number of tokens in an answer.
        seed: the seed of the draws; the same seed and messages give the same conversation.
        stop: strings; an answer ends before the first of them.
        chat_template: a Jinja file, or "stellarbyte"; the tokenizer's own template by default.
        cache_dtype: dtype of the cached keys and values; by default the compute dtype.
        pruning: the budget of keys and values, and what is kept within it; by default all are kept.

    Raises:
        UserError: there is no chat template, a stop string is empty, or a number is out of range.
    """

    def __init__(
        self,
        model: ByteForCausalLM,
        tokenizer: Tokenizer,
        sampling: Sampling | None = None,
        max_new_tokens: int = 512,
        seed: int = 0,
        stop: Sequence[str] = (),
        chat_template: str | None = None,
        cache_dtype: DTypeLike | None = None,
        pruning: KVPruning | None = None,
    ) -> None:
        check_seed("--seed", seed)
        check_stop_strings(stop)
        about = chat_tokenizer(tokenizer, chat_template, "--chat-template")
        super().__init__(about, model.config.context_length, model.config.vocab_size, max_new_tokens)
        self._parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        self._generator = Generator(model, cache_dtype, prompt_room=_room, pruning=pruning)
        self._tokenizer, self._sampling, self._stop, self._seed = tokenizer, sampling, stop, seed
        self._end_ids = turn_ends(self.encoder, tokenizer.special_ids) | {model.config.eos_token_id}
        self._answers = 0

    @property
    def parameters(self) -> int:
        """The number of the model's parameters."""
        return self._parameters

    def add_adapter(self, name: str, folder: Path) -> None:  # noqa: ARG002 - as the base class declares it
        """Raises UserError, because only PyTorch swaps adapters."""
        raise _no_adapters()

    def use_adapter(self, name: str) -> None:
        """Raises UserError unless `name` is the base, because only PyTorch swaps adapters."""
        if name != BASE:
            raise _no_adapters()

    def _continue(
        self, prompt_ids: list[int], on_text: Callable[[str], Any] | None, stop: Callable[[], bool]
    ) -> Continuation:
        answer, interrupted = GrowingText(self._tokenizer, self._end_ids, self._stop), False

        def take(tokens_1A: np.ndarray) -> np.ndarray:
            nonlocal interrupted
            text = answer.take(tokens_1A[0].tolist())
            if text and on_text is not None:
                on_text(text)
            interrupted = interrupted or (not answer.ended and stop())
            return np.array([answer.ended or interrupted])

        # Each answer has a seed of its own, and the same first seed gives the same conversation.
        seed = int(np.random.SeedSequence([self._seed, self._answers]).generate_state(1)[0])
        max_new_tokens = min(self.max_new_tokens, self.context - len(prompt_ids))
        self._generator.generate([prompt_ids], max_new_tokens, self._sampling, seed, take)
        self._answers += 1
        rest = answer.finish()
        if rest and on_text is not None:
            on_text(rest)
        finish: Finish = "stop" if answer.ended else "interrupted" if interrupted else "length"
        return Continuation(answer.text, finish, answer.new_tokens)


def _room(length: int) -> int:
    return max(_SMALLEST_ROOM, 1 << (length - 1).bit_length())


def _no_adapters() -> UserError:
    return UserError(
        "a run answers with its own weights alone: to swap adapters, export it by `stellarbyte convert to-hf` and chat "
        "with the export"
    )
