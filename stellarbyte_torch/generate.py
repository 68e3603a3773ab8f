"""From an exported folder and a prompt to text."""

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from stellarbyte.command_line import check_text
from stellarbyte.errors import UserError
from stellarbyte.reading import read_json
from stellarbyte_torch.model_folder import load_model, load_tokenizer
from stellarbyte_torch.modeling_stellarbyte import ByteForCausalLM

# What decoding puts where bytes are no UTF-8, be it for good or only until the next token completes the character.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: temperature 0 takes the likeliest; top_k and top_p None keep all."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.temperature < math.inf, "--temperature", self.temperature, "must be a number of at least 0")
        if self.top_k is not None:
            _require(self.top_k > 0, "--top-k", self.top_k, "must be at least 1")
        if self.top_p is not None:
            _require(0 < self.top_p <= 1, "--top-p", self.top_p, "must be greater than 0 and at most 1")
        for option, value in (("--top-k", self.top_k), ("--top-p", self.top_p)):
            complaint = "has no effect at --temperature 0, which takes the likeliest token: set --temperature above 0"
            _require(self.temperature > 0 or value is None, option, value, complaint)
        _require(self.max_new_tokens > 0, "--max-new-tokens", self.max_new_tokens, "must be at least 1")
        _require(0 <= self.seed < 2**64, "--seed", self.seed, "must be at least 0 and less than 2^64")


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
    folder: Path, device: str | None = None, dtype: str = "auto"
) -> tuple[ByteForCausalLM, PreTrainedTokenizerBase]:
    """Load an exported folder, in eval mode: device None takes CUDA where there is one, dtype "auto" the saved one.

    Raises:
        UserError: the folder is missing, holds another architecture, is damaged, or the device is not there.
    """
    _check_folder(folder)
    model: Any = load_model(folder, device, dtype)
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
    sampling: Sampling,
    on_text: Callable[[str], Any] | None = None,
) -> Generation:
    """Continue [bos] + prompt until eos, max_new_tokens, or the end of the context.

    Args:
        model: a ByteForCausalLM in eval mode.
        tokenizer: the one it was trained with; special strings inside the prompt stay ordinary text.
        prompt: may be empty.
        sampling: with a temperature above 0, the same seed gives the same text.
        on_text: called with each piece of the continuation as soon as its characters are complete.

    Raises:
        UserError: the prompt fills the context, or is not text.
    """
    config = model.config
    check_text("--prompt", prompt)
    if config.bos_token_id is None:
        raise UserError("config.json gives no bos_token_id, with which every text begins: put in the tokenizer's")
    encoded = tokenizer.encode(prompt, add_special_tokens=False, split_special_tokens=True) if prompt else []
    prompt_ids = [config.bos_token_id, *encoded]
    room = config.max_position_embeddings - len(prompt_ids)
    if room < 1:
        raise UserError(
            f"--prompt has {len(prompt_ids)} tokens with its beginning, too many for a context of "
            f"{config.max_position_embeddings} that must hold the answer, too: shorten it"
        )
    input_ids = torch.tensor([prompt_ids], device=model.device)
    streamer = TextStream(tokenizer, on_text) if on_text else None
    torch.manual_seed(sampling.seed)
    started = time.perf_counter()
    output_ids = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        generation_config=generation_config(
            sampling,
            min(sampling.max_new_tokens, room),
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
        ),
        streamer=streamer,
    )
    new_ids = output_ids[0, len(prompt_ids) :].tolist()
    seconds = time.perf_counter() - started
    eos_ids = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ended = bool(new_ids) and new_ids[-1] in eos_ids
    new_ids = new_ids[:-1] if ended else new_ids
    cut_at = room if not ended and room < sampling.max_new_tokens else None
    rate = len(new_ids) / seconds
    return Generation(prompt, decode(tokenizer, new_ids), len(prompt_ids), len(new_ids), rate, cut_at)


class TextStream(BaseStreamer):
    """Hands on text token by token, holding back the bytes of a character that is not complete yet; no stop_ids."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], Any], stop_ids: Collection[int] = ()
    ) -> None:
        self.tokenizer = tokenizer
        self.on_text = on_text
        self.stop_ids = stop_ids
        self.before: list[int] = []  # what was handed on last: some tokenizers begin a text without its space
        self.pending: list[int] = []
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """The prompt first, which the caller knows, then each new token."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.pending += [token for token in value.flatten().tolist() if token not in self.stop_ids]
        if not self._text().endswith(_REPLACEMENT):
            self.end()

    def end(self) -> None:
        """Hand on what is held back, complete or not."""
        text = self._text()
        if text:
            self.before = self.pending
            self.on_text(text)
        self.pending = []

    def _text(self) -> str:
        return decode(self.tokenizer, self.before + self.pending)[len(decode(self.tokenizer, self.before)) :]


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
        }
    return GenerationConfig(max_new_tokens=max_new_tokens, **others, **choice)


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of tokens, special ones left out."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that `stellarbyte-convert to-hf` wrote")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json: give a folder that `stellarbyte-convert to-hf` wrote")
    config = read_json(folder / "config.json")
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != ByteForCausalLM.config_class.model_type:
        raise UserError(
            f"{folder} holds a model of type {str(model_type)[:80]}, not stellarbyte: give a StellarByte export"
        )
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} holds no tokenizer.json: copy the one there that the model was trained with")


def _require(holds: bool, name: str, value: object, complaint: str) -> None:
    if not holds:
        raise UserError(f"{name} {value} {complaint}")
