"""A conversation with a Hugging Face model, under adapters that may change between two answers."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList

from stellarbyte.chat.encoding import ChatEncoder
from stellarbyte.chat.session import BASE, ChatSession, Continuation, Finish, turn_ends
from stellarbyte.chat.template import read_template
from stellarbyte.errors import UserError
from stellarbyte.kv_cache.settings import KVPruning
from stellarbyte.reading import expanded
from stellarbyte.sampling import Sampling
from stellarbyte.stop_strings import check_stop_strings
from stellarbyte_torch.data.tokenizer import chat_tokenizer
from stellarbyte_torch.decoder import context_of, end_ids
from stellarbyte_torch.generate import (
    FiniteScores,
    TextStream,
    check_length_and_seed,
    generation_config,
)
from stellarbyte_torch.kv_cache.cache import PrunedCache, cache_for
from stellarbyte_torch.lora import LoRAManager
from stellarbyte_torch.lora.names import near_name
from stellarbyte_torch.memory.reader import TorchReader
from stellarbyte_torch.model_folder import load_model, load_tokenizer
from stellarbyte_torch.modeling_stellarbyte import CACHE
from stellarbyte_torch.torchao_settings import Int8

_ADAPTER_NAME = re.compile(r"[\w-]+")  # PyTorch allows no dots, a command no spaces


@dataclass(frozen=True)
class _Past:
    """The cache of the last answer: of which tokens, and under which adapters."""

    input_ids: list[int]
    adapters: dict[str, float]
    cache: Any


class TorchChatSession(ChatSession):
    """Talks with any causal language model of transformers; adapters may change between two answers.

    Answers end at the tokens that the chat template, the tokenizer or the model's generation_config.json end a turn
    with; else, what `sampling` says decides alone.

    Args:
        model: in eval mode; it takes the adapters in place.
        tokenizer: the one it was trained with; special tokens in a message's text stay text.
        sampling: how answers are drawn, greedily by default.
        max_new_tokens: the most tokens of an answer.
        seed: of the draws; it is set once, so that the same conversation comes about again.
        stop: strings before the first of which an answer ends.
        chat_template: Jinja; the tokenizer's own by default.
        pruning: the budget of keys and values, and what is kept within it; by default all are kept.

    Raises:
        UserError: there is no chat template, a stop string is empty, a number is out of range, or the model is not one
            that can have its cache pruned.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling | None = None,
        max_new_tokens: int = 512,
        seed: int = 0,
        stop: Sequence[str] = (),
        chat_template: str | None = None,
        pruning: KVPruning | None = None,
    ) -> None:
        check_length_and_seed(max_new_tokens, seed)
        check_stop_strings(stop)
        super().__init__(
            chat_tokenizer(tokenizer, chat_template),
            context=_context_length(model, tokenizer),
            vocab_size=model.get_input_embeddings().weight.shape[0],
            max_new_tokens=max_new_tokens,
        )
        self.manager, self._model = LoRAManager(model), model
        self._tokenizer = tokenizer
        self._sampling, self._stop = sampling or Sampling(), stop
        self._stop_ids = sorted(_stop_ids(model, tokenizer, self.encoder))
        cache_for(model, pruning, self.context)  # a model that cannot have one is refused at once
        self._pruning = pruning
        self._past: _Past | None = None
        rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
        # In longer texts these turn all keys by other angles, also those that a cache holds.
        self._keys_move = {"dynamic", "longrope"} & {rope.get("rope_type"), rope.get("type")} != set()
        model.generation_config = GenerationConfig()  # generate would fill gaps with what it holds
        torch.manual_seed(seed)

    @property
    def parameters(self) -> int:
        """The number of the model's parameters, those of adapters included."""
        return sum(parameter.numel() for parameter in self.manager.model.parameters())

    @property
    def adapter(self) -> str | None:
        """The active adapter's name; None is the base."""
        return next(iter(self.manager.active), None)

    @property
    def adapter_names(self) -> Sequence[str]:
        """The adapters that are registered."""
        return self.manager.names

    def reader(self, name: str, weights: str) -> TorchReader:
        """The model as a memory uses it: the base, whichever adapter is active. The arguments are TorchReader's."""
        return TorchReader(self._model, self._tokenizer, name, weights, self.manager.bare)

    def add_adapter(self, name: str, folder: Path) -> None:
        """Register the adapter in a PEFT folder, not yet active.

        Raises:
            UserError: a name that cannot be one or is taken, no adapter in the folder, or one of another base.
        """
        if not _ADAPTER_NAME.fullmatch(name) or name == BASE:
            raise UserError(f"{name!r} cannot name an adapter: take letters, digits, _ and -, and not {BASE!r}")
        if not (folder / "adapter_config.json").is_file():
            raise UserError(f"{folder} holds no adapter_config.json: give a folder that PEFT or finetune wrote")
        self.manager.register(name, folder)

    def use_adapter(self, name: str) -> None:
        """Switch to an adapter, or with "off" to the base; the conversation goes on. Raises UserError: no such one."""
        if name == BASE:
            self.manager.deactivate()
        else:
            self.manager.activate(name)

    def _continue(
        self, prompt_ids: list[int], on_text: Callable[[str], Any] | None, stop: Callable[[], bool]
    ) -> Continuation:
        interrupted = False

        def interrupt(input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            nonlocal interrupted
            interrupted = interrupted or stop()
            return torch.full((len(input_ids),), interrupted, device=input_ids.device)

        input_ids = torch.tensor([prompt_ids], device=self.manager.model.device)
        room = self.context - len(prompt_ids)
        stream = TextStream(self._tokenizer, on_text, self._stop_ids, self._stop)
        new_tokens = min(self.max_new_tokens, room)
        # The cache grows, and is of no use if that fails half-way.
        cache, self._past = self._cache_of(prompt_ids, new_tokens), None
        output = self.manager.generate(
            input_ids=input_ids,
            **{CACHE: cache},
            attention_mask=torch.ones_like(input_ids),
            generation_config=generation_config(
                self._sampling,
                new_tokens,
                eos_token_id=self._stop_ids or None,
                # Only rows that have ended are padded, and there is but one.
                pad_token_id=self._stop_ids[0] if self._stop_ids else 0,
                return_dict_in_generate=True,
            ),
            logits_processor=LogitsProcessorList([FiniteScores()]),
            stopping_criteria=StoppingCriteriaList([interrupt, stream.stopping]),
            streamer=stream,
        )
        ids = output.sequences[0].tolist()
        self._past = _Past(ids[:-1], self.manager.active, output[CACHE])  # the last token was never read
        new_ids = ids[len(prompt_ids) :]
        finish: Finish = "interrupted" if interrupted else "length"
        if new_ids and new_ids[-1] in self._stop_ids:
            finish = "stop"
            new_ids.pop()
        elif stream.stopped:
            finish = "stop"
        return Continuation(stream.text, finish, len(new_ids))

    def _cache_of(self, prompt_ids: list[int], new_tokens: int) -> Any:
        """The last answer's cache, where the conversation only went on from there; else a new one, None for all keys.

        A budget that is a share grows with the conversation, which is then read again.
        """
        past, fresh = self._past, cache_for(self.manager.model, self._pruning, len(prompt_ids) + new_tokens)
        if past is None or past.adapters != self.manager.active or self._keys_move:
            return fresh
        sizes = [cache.sizes if isinstance(cache, PrunedCache) else None for cache in (past.cache, fresh)]
        goes_on = prompt_ids[: len(past.input_ids)] == past.input_ids and sizes[0] == sizes[1]
        return past.cache if goes_on else fresh


def open_session(
    folder: Path,
    sampling: Sampling | None = None,
    max_new_tokens: int = 512,
    seed: int = 0,
    stop: Sequence[str] = (),
    chat_template: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
    quantize: Int8 | None = None,
    pruning: KVPruning | None = None,
) -> TorchChatSession:
    """A session with the model in a Hugging Face folder; chat_template is a Jinja file or "stellarbyte".

    Raises:
        UserError: the folder, the template or the device cannot be used.
        ModuleNotFoundError: `quantize` needs torchao, which is not installed.
    """
    template = read_template(chat_template, "--chat-template")
    model = load_model(folder, device, dtype, quantize=quantize)
    return TorchChatSession(model, load_tokenizer(folder), sampling, max_new_tokens, seed, stop, template, pruning)


def add_adapters(session: ChatSession, options: Sequence[str]) -> None:
    """Register what `--adapter [NAME=]FOLDER` says, by the folder's name if it has no other; the first is active.

    A folder may have = in its path: then it has to be there, or a / stands before the =.

    Raises:
        UserError: as the session says of an adapter.
    """
    for number, option in enumerate(options):
        name, equals, folder = option.partition("=")
        is_path = not equals or "/" in name or expanded(option).is_dir()
        path = expanded(option if is_path else folder)
        session.add_adapter(near_name(path.resolve().name) if is_path else name, path)
        if number == 0:
            session.use_adapter(session.adapter_names[0])


def _context_length(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    return int(context_of(model) or tokenizer.model_max_length)


def _stop_ids(model: Any, tokenizer: PreTrainedTokenizerBase, encoder: ChatEncoder) -> set[int]:
    """Tokens that end an answer."""
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return end_ids(model, tokenizer) | turn_ends(encoder, special)
