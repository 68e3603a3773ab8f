"""From a Hugging Face folder and a prompt to text."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from stellarbyte.command_line import check_text
from stellarbyte.errors import UserError
from stellarbyte.evaluation.scorer import check_ids
from stellarbyte.kv_cache.settings import KVPruning
from stellarbyte.sampling import Sampling
from stellarbyte.stop_strings import StopCutter
from stellarbyte.tokenizer_file import works
from stellarbyte_torch.decoder import context_of, end_ids
from stellarbyte_torch.kv_cache.cache import cache_for
from stellarbyte_torch.model_folder import load_model, load_tokenizer
from stellarbyte_torch.modeling_stellarbyte import CACHE, ByteForCausalLM
from stellarbyte_torch.torchao_settings import Int8

# What decoding puts where bytes are no UTF-8, be it for good or only until the next token completes the character.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A text that shows which tokens a tokenizer puts before one.
_LETTER = "a"


@dataclass(frozen=True)
class Generation:
    """A prompt's continuation. Counts are tokens: the prompt's with its bos, the new ones without an eos.

    cut_at: the tokens that the context left, where the answer was not yet done then.
    """

    prompt: str
    text: str
    prompt_tokens: int
    new_tokens: int
    tokens_per_second: float
    cut_at: int | None = None


def load(
    folder: Path, device: str | None = None, dtype: str = "auto", quantize: Int8 | None = None
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, in eval mode; the arguments are those of `load_model`.

    Raises:
        UserError: the folder is missing, holds no such model, is damaged, or cannot be loaded so.
    """
    model: Any = load_model(folder, device, dtype, quantize=quantize)
    tokenizer = load_tokenizer(folder)
    rows = model.get_input_embeddings().weight.shape[0]
    # Stock folders may have spare tokens beyond the matrix; `generate` looks at those of a prompt.
    if isinstance(model, ByteForCausalLM) and len(tokenizer) > rows:
        raise UserError(
            f"{folder} holds a tokenizer of {len(tokenizer)} tokens, more than the model's vocab_size {rows}: put the "
            "tokenizer there that the model was trained with"
        )
    # What the caller asks for decides alone: generate would fill gaps from the folder's generation_config.json.
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
    return model, tokenizer


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    on_text: Callable[[str], Any] | None = None,
    pruning: KVPruning | None = None,
) -> Generation:
    """Continue a prompt until eos, up to a stop string, by max_new_tokens or to the end of the context.

    Args:
        model: a causal language model in eval mode.
        tokenizer: the one it was trained with; special strings inside the prompt stay ordinary text.
        prompt: may be empty.
        max_new_tokens: at most so many are added.
        sampling: greedy by default.
        seed: of the draws; the same one gives the same text.
        stop: the text ends before the first of these that is complete in it, wherever tokens begin and end.
        on_text: called with each piece of the continuation as soon as its characters are complete, never with what
            will be cut off.
        pruning: the budget of keys and values, and what is kept within it; by default all are kept.

    Raises:
        UserError: the prompt fills the context or is no text, a stop string is empty, or a number is out of range.
    """
    sampling = sampling or Sampling()
    check_text("--prompt", prompt)
    check_length_and_seed(max_new_tokens, seed)
    prompt_ids = _prompt_ids(model, tokenizer, prompt)
    context = context_of(model)
    room = max_new_tokens if context is None else context - len(prompt_ids)
    if room < 1:
        raise UserError(
            f"--prompt has {len(prompt_ids)} tokens with its beginning, too many for a context of {context} that must "
            "hold the answer, too: shorten it"
        )
    input_ids = torch.tensor([prompt_ids], device=model.device)
    eos_ids = sorted(end_ids(model, tokenizer))
    pad_id = next((pad for pad in (model.config.get_text_config().pad_token_id, *eos_ids) if pad is not None), 0)
    stream = TextStream(tokenizer, on_text, eos_ids, stop)
    new_tokens = min(max_new_tokens, room)
    cache = cache_for(model, pruning, len(prompt_ids) + new_tokens)
    torch.manual_seed(seed)
    started = time.perf_counter()
    output_ids = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        generation_config=generation_config(
            sampling,
            new_tokens,
            bos_token_id=prompt_ids[0],
            eos_token_id=eos_ids or None,
            pad_token_id=pad_id,
        ),
        logits_processor=LogitsProcessorList([FiniteScores()]),
        stopping_criteria=StoppingCriteriaList([stream.stopping]),
        streamer=stream,
        **({} if cache is None else {CACHE: cache}),
    )
    new_ids = output_ids[0, len(prompt_ids) :].tolist()
    seconds = time.perf_counter() - started
    ended = bool(new_ids) and new_ids[-1] in eos_ids
    new_ids = new_ids[:-1] if ended else new_ids
    cut_at = room if not ended and not stream.stopped and room < max_new_tokens else None
    return Generation(prompt, stream.text, len(prompt_ids), len(new_ids), len(new_ids) / seconds, cut_at)


class FiniteScores(LogitsProcessor):
    """Ends a generation whose next token would be drawn by no numbers, or chosen as if they were some."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The scores of the next token as they are. Raises UserError: they are NaN or infinite."""
        if bool((torch.isnan(scores) | torch.isposinf(scores)).any()):
            raise UserError(
                f"after {input_ids.shape[1]} tokens the model's scores are no finite numbers: its weights, or an "
                "adapter's, are too large; take --dtype float32 if this was another"
            )
        return scores


class TextStream(BaseStreamer):
    """Turns new tokens into text as they come, without the bytes of a character that is not complete yet.

    Args:
        tokenizer: the model's.
        on_text: called with each piece of the text.
        end_ids: tokens that end an answer, and are no text.
        stop: strings before the first of which the text ends.

    Attributes:
        text: what has come so far and was not held back.
        stopped: whether a stop string has ended it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        on_text: Callable[[str], Any] | None = None,
        end_ids: Collection[int] = (),
        stop: Sequence[str] = (),
    ) -> None:
        self.text = ""
        self._tokenizer, self._on_text, self._end_ids = tokenizer, on_text, end_ids
        self._cutter = StopCutter(stop)
        self._before: list[int] = []  # what was handed on last: some tokenizers begin a text without its space
        self._pending: list[int] = []
        self._prompt_seen = False

    @property
    def stopped(self) -> bool:
        """See the class."""
        return self._cutter.stopped

    def stopping(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """A stopping criterion of transformers' generate."""
        return torch.full((len(input_ids),), self.stopped, device=input_ids.device)

    def put(self, value: torch.Tensor) -> None:
        """The prompt first, which the caller knows, then each new token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._pending += [token for token in value.flatten().tolist() if token not in self._end_ids]
        if not self._decoded().endswith(_REPLACEMENT):
            self._hand_on()

    def end(self) -> None:
        """Hands on what was held back, complete or not."""
        self._hand_on()
        if not self.stopped:
            self._say(self._cutter.finish())

    def _hand_on(self) -> None:
        text = self._decoded()
        if text and not self.stopped:
            self._before = self._pending
            self._say(self._cutter.push(text))
        self._pending = []

    def _say(self, text: str) -> None:
        self.text += text
        if text and self._on_text is not None:
            self._on_text(text)

    def _decoded(self) -> str:
        before = decode(self._tokenizer, self._before)
        return decode(self._tokenizer, self._before + self._pending)[len(before) :]


def check_length_and_seed(max_new_tokens: int, seed: int) -> None:
    """Refuses numbers that no answer can have. Raises UserError."""
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens} must be at least 1")
    if not 0 <= seed < 2**64:
        raise UserError(f"--seed {seed} must be at least 0 and less than 2^64")


def generation_config(sampling: Sampling, max_new_tokens: int, **others: Any) -> GenerationConfig:
    """What transformers' generate is told; others are its fields that have nothing to do with sampling."""
    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        choice = {
            "do_sample": True,
            "temperature": sampling.temperature,
            # transformers' words for all; its own default would be the 50 likeliest.
            "top_k": sampling.top_k or 0,
            "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
            "min_p": sampling.min_p,
        }
    penalty = sampling.repetition_penalty
    return GenerationConfig(max_new_tokens=max_new_tokens, repetition_penalty=penalty, **others, **choice)


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of tokens, special ones left out."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _prompt_ids(model: Any, tokenizer: Any, prompt: str) -> list[int]:
    """The prompt's tokens behind those with which a text begins. Raises UserError: the model has no such tokens."""
    name = str(tokenizer.name_or_path)
    with works(name):
        encoded = tokenizer.encode(prompt, add_special_tokens=False, split_special_tokens=True) if prompt else []
        prompt_ids = [*_beginning(model, tokenizer), *encoded]
    if not prompt_ids:  # something has to be gone on from
        ids = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        prompt_ids = [token for token in ids if token is not None][:1]
    if not prompt_ids:
        raise UserError(f"--prompt is empty, and {name} has neither bos nor eos to begin with: say something")
    check_ids(np.array(prompt_ids), model.get_input_embeddings().weight.shape[0], name)
    return prompt_ids


def _beginning(model: Any, tokenizer: Any) -> list[int]:
    """What stands before a text: bos of our models, and of others what their tokenizers put there, if anything."""
    if isinstance(model, ByteForCausalLM):
        if model.config.bos_token_id is None:
            raise UserError("config.json gives no bos_token_id, with which every text begins: put in the tokenizer's")
        return [model.config.bos_token_id]
    alone, whole = tokenizer.encode(_LETTER, add_special_tokens=False), tokenizer.encode(_LETTER)
    before = next((at for at in range(len(whole)) if whole[at : at + len(alone)] == alone), 0)
    return list(whole[:before])
