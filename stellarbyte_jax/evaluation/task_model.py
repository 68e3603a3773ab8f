"""A run's model as lm-eval's tasks use it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from flax import nnx
from lm_eval.api.model import TemplateLM

from stellarbyte.evaluation.batches import Row, RowScores, score_rows
from stellarbyte.evaluation.windows import Windows
from stellarbyte.progress import progress
from stellarbyte.sampling import Sampling
from stellarbyte_jax.evaluation.scorer import JaxScorer
from stellarbyte_jax.inference.generate import Generator
from stellarbyte_jax.inference.text import GrowingText

# What lm-eval's own models add at most to a prompt where a task does not say it.
_NEW_TOKENS = 256
# Prompts continued at once.
_PROMPTS = 8


class RunTaskModel(TemplateLM):
    """A run, computed in JAX. Texts become tokens as by the tokenizer of its export: with bos before a text."""

    def __init__(self, scorer: JaxScorer, batch_tokens: int) -> None:
        super().__init__()
        self._scorer, self._batch_tokens = scorer, batch_tokens

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._scorer.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text."""
        return self._scorer.begin

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's caches know the tokenizer by."""
        return self._scorer.tokenizer.sha256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """See TemplateLM."""
        tokenizer = self._scorer.tokenizer
        if add_special_tokens is False:
            return tokenizer.encode(string)
        # The export of a tokenizer of ours puts bos before a text; a stock one does what it does.
        if tokenizer.is_ours:
            return [tokenizer.bos_token_id, *tokenizer.encode(string)]
        return tokenizer.encode_as_hugging_face(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        positions = self._scorer.positions

        def rows() -> Iterator[tuple[int, Row]]:
            for number, (_, context, continuation) in enumerate(requests):
                ids = np.array([*context, *continuation], np.int32)[-(positions + 1) :]
                yield number, Row(ids, min(len(continuation), positions))

        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for number, scores in self._scored(rows(), len(requests)):
            found[number] = float(scores.log_p_N.sum(dtype=np.float64)), bool(scores.hit_N.all())
            if requests[number][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[number][0], found[number])
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """See LM. The token before a text is not scored."""
        del disable_tqdm
        windows = Windows(self._scorer.positions, self._scorer.positions)

        def rows() -> Iterator[tuple[int, Row]]:
            for number, request in enumerate(requests):
                ids = np.array([self._scorer.begin, *self._scorer.encode(request.args[0]).ids], np.int32)
                for start, stop, scored in windows.cut(len(ids) - 1):
                    yield number, Row(ids[start:stop], scored)

        found = [0.0] * len(requests)
        for number, scores in self._scored(rows(), None):
            found[number] += float(scores.log_p_N.sum(dtype=np.float64))
        return found

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """See LM: greedy, or drawn as the task says by do_sample, temperature, top_k and top_p."""
        del disable_tqdm
        model = nnx.merge(self._scorer.graphdef, self._scorer.params)
        generator, found = Generator(model), [""] * len(requests)
        order = sorted(range(len(requests)), key=lambda number: repr(requests[number].args[1]))
        with progress("generating, prompts") as update:
            done = 0
            for _, group in groupby(order, lambda number: repr(requests[number].args[1])):
                numbers = list(group)
                for start in range(0, len(numbers), _PROMPTS):
                    some = numbers[start : start + _PROMPTS]
                    texts = self._continued(
                        generator, [requests[number].args[0] for number in some], requests[some[0]].args[1]
                    )
                    for number, text in zip(some, texts, strict=True):
                        found[number] = text
                    done += len(some)
                    update(done, len(requests))
        return found

    def _continued(self, generator: Generator, contexts: Sequence[str], how: dict[str, Any]) -> list[str]:
        """The continuations of contexts; of one that leaves too little room, the beginning is left out."""
        tokenizer, until = self._scorer.tokenizer, how.get("until") or []
        stop = [each for each in ([until] if isinstance(until, str) else until) if each]
        count = min(int(how.get("max_gen_toks", how.get("max_new_tokens", _NEW_TOKENS))), generator.context // 2)
        room = generator.context - count - 1
        prompts = [[tokenizer.bos_token_id, *tokenizer.encode(context)[-room:]] for context in contexts]
        sampling = Sampling()
        if how.get("do_sample") and float(how.get("temperature", 1.0)) > 0:
            sampling = Sampling(float(how.get("temperature", 1.0)), how.get("top_k") or None, how.get("top_p"))
        texts = [GrowingText(tokenizer, (tokenizer.eos_token_id,), stop, continues=bool(each)) for each in contexts]

        def take(tokens: Any) -> np.ndarray:
            for text, new in zip(texts, tokens, strict=True):
                text.take([int(token) for token in new])
            return np.array([text.ended for text in texts])

        generator.generate(prompts, count, sampling, int(how.get("seed", 0)), take)
        for text in texts:
            text.finish()
        return [text.text for text in texts]

    def _scored(self, rows: Iterable[tuple[int, Row]], whole: int | None) -> Iterator[tuple[int, RowScores]]:
        update: Callable[[int, int | None], None]
        with progress("scoring, rows") as update:
            for done, scored in enumerate(score_rows(self._scorer, rows, self._batch_tokens), 1):
                update(done, whole)
                yield scored
