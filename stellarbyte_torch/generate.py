"""From an exported folder and a prompt to text."""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from stellarbyte.kv_cache.settings import KVPruning
from stellarbyte.reading import read_json
from stellarbyte.sampling import Sampling
from stellarbyte.stop_strings import StopCutter
from stellarbyte.tokenizer_file import works
from stellarbyte_torch.kv_cache.cache import cache_for
from stellarbyte_torch.model_folder import load_model, load_tokenizer
from stellarbyte_torch.modeling_stellarbyte import CACHE, ByteForCausalLM
from stellarbyte_torch.torchao_settings import Int8

# What decoding puts where bytes are no UTF-8, be it for good or only until the next token completes the character.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


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
) -> tuple[ByteForCausalLM, PreTrainedTokenizerBase]:
    """Load an exported folder, in eval mode; the arguments are those of `load_model`.

    Raises:
        UserError: the folder is missing, holds another architecture, is damaged, or cannot be loaded so.
    """
    _check_folder(folder)
    model: Any = load_model(folder, device, dtype, quantize=quantize)
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(
            f"{folder} holds a tokenizer of {len(tokenizer)} tokens, more than the model's vocab_size "
            f"{model.config.vocab_size}: put the tokenizer there that the model was trained with"
        )
    # What the caller asks for decides alone: generate would fill gaps from the folder's generation_config.json.
    model.generation_config = GenerationConfig()
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
    """Continue [bos] + prompt until eos, up to a stop string, by max_new_tokens or to the end of the context.

    Args:
        model: a ByteForCausalLM in eval mode.
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
    config, sampling = model.config, sampling or Sampling()
    check_text("--prompt", prompt)
    check_length_and_seed(max_new_tokens, seed)
    if config.bos_token_id is None:
        raise UserError("config.json gives no bos_token_id, with which every text begins: put in the tokenizer's")
    with works(tokenizer.name_or_path):
        encoded = tokenizer.encode(prompt, add_special_tokens=False, split_special_tokens=True) if prompt else []
    prompt_ids = [config.bos_token_id, *encoded]
    room = config.max_position_embeddings - len(prompt_ids)
    if room < 1:
        raise UserError(
            f"--prompt has {len(prompt_ids)} tokens with its beginning, too many for a context of "
            f"{config.max_position_embeddings} that must hold the answer, too: shorten it"
        )
    input_ids = torch.tensor([prompt_ids], device=model.device)
    eos_ids = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
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
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
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


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that `stellarbyte convert to-hf` wrote")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json: give a folder that `stellarbyte convert to-hf` wrote")
    config = read_json(folder / "config.json")
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != ByteForCausalLM.config_class.model_type:
        raise UserError(
            f"{folder} holds a model of type {str(model_type)[:80]}, not stellarbyte: give a StellarByte export"
        )
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} holds no tokenizer.json: copy the one there that the model was trained with")
