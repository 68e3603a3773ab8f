"""A conversation with a model: what has been said, under which adapter, and how the next answer comes about."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList

from stellarbyte.chat.conversations import Conversation
from stellarbyte.chat.encoding import ChatEncoder
from stellarbyte.chat.template import read_template
from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import RecordError
from stellarbyte.sampling import Sampling
from stellarbyte.stop_strings import StopCutter
from stellarbyte_torch.data.tokenizer import chat_tokenizer
from stellarbyte_torch.generate import (
    FiniteScores,
    TextStream,
    check_length_and_seed,
    generation_config,
)
from stellarbyte_torch.lora import LoRAManager
from stellarbyte_torch.model_folder import load_model, load_tokenizer
from stellarbyte_torch.modeling_stellarbyte import CACHE

BASE = "off"  # what no adapter can be called, for it names the model without any
_ADAPTER_NAME = re.compile(r"[\w-]+")  # PyTorch allows no dots, a command no spaces


@dataclass(frozen=True)
class Answer:
    """An answer, and how it ended: by itself, at its length, or interrupted.

    forgotten: so many of the oldest messages no longer fitted in the context, and are gone. Counts are tokens, the new
    ones without the one that ends the turn.
    """

    text: str
    adapter: str | None
    finish: Literal["stop", "length", "interrupted"]
    forgotten: int
    prompt_tokens: int
    new_tokens: int
    tokens_per_second: float


@dataclass(frozen=True)
class _Past:
    """The cache of the last answer: of which tokens, and under which adapters."""

    input_ids: list[int]
    adapters: dict[str, float]
    cache: Any


class ChatSession:
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

    Raises:
        UserError: there is no chat template, a stop string is empty, or a number is out of range.
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
    ) -> None:
        check_length_and_seed(max_new_tokens, seed)
        StopCutter(stop)
        try:
            tokenizer.get_chat_template(chat_template)
        except ValueError:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path} has no chat template: "
                "set --chat-template to a Jinja file or to stellarbyte"
            ) from None
        self.manager = LoRAManager(model)
        self.system: str | None = None
        self.messages: list[dict[str, str]] = []
        self.context = _context_length(model, tokenizer)
        self._tokenizer = tokenizer
        self._encoder = ChatEncoder(chat_tokenizer(tokenizer, chat_template), datetime.now())
        self._sampling, self._max_new_tokens, self._stop = sampling or Sampling(), max_new_tokens, stop
        self._vocab_size = model.get_input_embeddings().weight.shape[0]
        self._stop_ids = sorted(_stop_ids(model, tokenizer, self._encoder))
        self._past: _Past | None = None
        rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
        # In longer texts these turn all keys by other angles, also those that a cache holds.
        self._keys_move = {"dynamic", "longrope"} & {rope.get("rope_type"), rope.get("type")} != set()
        model.generation_config = GenerationConfig()  # generate would fill gaps with what it holds
        torch.manual_seed(seed)

    @property
    def adapter(self) -> str | None:
        """The active adapter's name; None is the base."""
        return next(iter(self.manager.active), None)

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

    def answer(
        self,
        message: str,
        on_text: Callable[[str], Any] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """Say something and hear the answer; both join the conversation.

        on_text is called with each piece of the answer. stop is asked after each token whether to break off there.

        Raises:
            UserError: the message is too long, or the conversation does not suit the template; nothing was said then.
        """
        before = list(self.messages)
        self.messages.append({"role": "user", "content": message})
        try:
            answer = self._generate(on_text, stop or (lambda: False))
        except BaseException:
            self.messages = before
            raise
        self.messages.append({"role": "assistant", "content": answer.text})
        return answer

    def undo(self) -> str:
        """Take the last message and its answer back; returns the message. Raises UserError: nothing was said yet."""
        if not self.messages:
            raise UserError("nothing has been said yet")
        self.messages.pop()
        return self.messages.pop()["content"]

    def _generate(self, on_text: Callable[[str], Any] | None, stop: Callable[[], bool]) -> Answer:
        prompt_ids, forgotten = self._prompt()
        interrupted = False

        def interrupt(input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            nonlocal interrupted
            interrupted = interrupted or stop()
            return torch.full((len(input_ids),), interrupted, device=input_ids.device)

        input_ids = torch.tensor([prompt_ids], device=self.manager.model.device)
        room = self.context - len(prompt_ids)
        stream = TextStream(self._tokenizer, on_text, self._stop_ids, self._stop)
        started = time.perf_counter()
        cache, self._past = self._cache_of(prompt_ids), None  # it grows, and is of no use if that fails half-way
        output = self.manager.generate(
            input_ids=input_ids,
            **{CACHE: cache},
            attention_mask=torch.ones_like(input_ids),
            generation_config=generation_config(
                self._sampling,
                min(self._max_new_tokens, room),
                eos_token_id=self._stop_ids or None,
                # Only rows that have ended are padded, and there is but one.
                pad_token_id=self._stop_ids[0] if self._stop_ids else 0,
                return_dict_in_generate=True,
            ),
            logits_processor=LogitsProcessorList([FiniteScores()]),
            stopping_criteria=StoppingCriteriaList([interrupt, stream.stopping]),
            streamer=stream,
        )
        seconds = time.perf_counter() - started
        ids = output.sequences[0].tolist()
        self._past = _Past(ids[:-1], self.manager.active, output[CACHE])  # the last token was never read
        new_ids = ids[len(prompt_ids) :]
        finish: Literal["stop", "length", "interrupted"] = "interrupted" if interrupted else "length"
        if new_ids and new_ids[-1] in self._stop_ids:
            finish = "stop"
            new_ids.pop()
        elif stream.stopped:
            finish = "stop"
        count = len(new_ids)
        return Answer(stream.text, self.adapter, finish, forgotten, len(prompt_ids), count, count / seconds)

    def _cache_of(self, prompt_ids: list[int]) -> Any:
        """The last answer's cache, where the conversation only went on from there; else None."""
        past = self._past
        if past is None or past.adapters != self.manager.active or self._keys_move:
            return None
        return past.cache if prompt_ids[: len(past.input_ids)] == past.input_ids else None

    def _prompt(self) -> tuple[list[int], int]:
        """The conversation's tokens, and how many of its oldest messages had to go for a quarter of the context."""
        reserve = min(self._max_new_tokens, self.context // 4)
        forgotten = 0
        while True:
            try:
                prompt_ids = self._encoder.encode_prompt([*self._opening(), *self.messages])
            except RecordError as error:
                raise UserError(str(error)) from error
            if max(prompt_ids) >= self._vocab_size:
                raise UserError(
                    f"the tokenizer {self._tokenizer.name_or_path} writes token {max(prompt_ids)}, and the model knows "
                    f"{self._vocab_size}: use the tokenizer that it was trained with"
                )
            if len(prompt_ids) + reserve <= self.context:
                return prompt_ids, forgotten
            if len(self.messages) == 1:
                break
            # A question goes with its answer: most templates want users and assistants to take turns.
            del self.messages[:2]
            forgotten += 2
        if len(prompt_ids) < self.context:
            return prompt_ids, forgotten
        raise UserError(
            f"the message makes a prompt of {len(prompt_ids)} tokens, too many for a context of {self.context} that "
            "must hold the answer, too: shorten it, or the system text"
        )

    def _opening(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []


def open_session(
    folder: Path,
    sampling: Sampling | None = None,
    max_new_tokens: int = 512,
    seed: int = 0,
    stop: Sequence[str] = (),
    chat_template: str | None = None,
    device: str | None = None,
    dtype: str = "auto",
) -> ChatSession:
    """A session with the model in a Hugging Face folder; chat_template is a Jinja file or "stellarbyte".

    Raises:
        UserError: the folder, the template or the device cannot be used.
    """
    template = read_template(chat_template, "--chat-template")
    model = load_model(folder, device, dtype)
    return ChatSession(model, load_tokenizer(folder), sampling, max_new_tokens, seed, stop, template)


def _context_length(model: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(length or tokenizer.model_max_length)


def _stop_ids(model: Any, tokenizer: PreTrainedTokenizerBase, encoder: ChatEncoder) -> set[int]:
    """Tokens that end an answer, by whoever says so: many a chat model's config names a document's end alone."""
    stops: set[int] = set()
    for source in (model.generation_config, model.config.get_text_config(), tokenizer):
        ids = getattr(source, "eos_token_id", None)
        stops |= {ids} if isinstance(ids, int) else set(ids or ())
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}] * 2
    try:
        (sample,) = encoder.encode([encoder.render(Conversation("a conversation", turns))])
    except RecordError:  # a template that rewrites its turns cannot tell where one ends: the names above must do
        return stops
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    # A turn's last tokens, and those of a turn that another one follows: templates may end these otherwise.
    ending = True
    for token, trained in reversed(list(zip(sample.input_ids.tolist(), sample.trained.tolist(), strict=True))):
        ending = not trained or (ending and token in special)
        stops |= {token} if trained and ending else set()
    return stops
