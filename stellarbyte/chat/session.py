"""A conversation with a model: what has been said, and what of it the model is shown for its next answer."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from stellarbyte.chat.conversations import Conversation
from stellarbyte.chat.encoding import ChatEncoder, ChatTokenizer
from stellarbyte.chat.wording import control_texts, takes_system
from stellarbyte.errors import UserError
from stellarbyte.memory.entries import Decision, Found
from stellarbyte.memory.recall import Recall
from stellarbyte.memory.rendering import Block, placed, rendered
from stellarbyte.records.bad_records import RecordError

BASE = "off"  # what no adapter can be called, for it names the model without any

Finish = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True)
class Answer:
    """An answer, and how it ended: by itself, at its length, or interrupted.

    Attributes:
        text: what the model said.
        adapter: the adapter that was active; None is the base.
        finish: why the answer ended.
        forgotten: how many of the oldest messages no longer fitted in the context, and were dropped for good.
        prompt_tokens: tokens of the conversation that the model was shown.
        new_tokens: tokens of the answer, without the one that ends the turn.
        tokens_per_second: of the new tokens, over the whole time that the answer took.
        recalled: what the prompt held of the memory, the best first.
        kept: what the memory's gate decided on what the message says; empty if it was not asked.
    """

    text: str
    adapter: str | None
    finish: Finish
    forgotten: int
    prompt_tokens: int
    new_tokens: int
    tokens_per_second: float
    recalled: tuple[Found, ...] = ()
    kept: tuple[Decision, ...] = ()


@dataclass(frozen=True)
class Continuation:
    """What a model adds to the tokens of a conversation: the text, why it ended, and its number of tokens."""

    text: str
    finish: Finish
    new_tokens: int


class ChatSession(ABC):
    """Talks with a model. A wing says how the model continues tokens, and which adapters it has.

    Args:
        tokenizer: the model's tokenizer, with the chat template of the conversation.
        context: tokens of the longest conversation with its answer.
        vocab_size: tokens that the model knows.
        max_new_tokens: tokens of the longest answer.

    Raises:
        UserError: there is no chat template, or an answer may have no tokens.
    """

    def __init__(self, tokenizer: ChatTokenizer, context: int, vocab_size: int, max_new_tokens: int) -> None:
        if max_new_tokens < 1:
            raise UserError(f"--max-new-tokens {max_new_tokens} must be at least 1")
        if tokenizer.template is None:
            raise UserError(
                f"the tokenizer {tokenizer.name} has no chat template: "
                "set --chat-template to a Jinja file or to stellarbyte"
            )
        self.system: str | None = None
        self.messages: list[dict[str, str]] = []
        self.recall: Recall | None = None
        self.context = context
        self.encoder = ChatEncoder(tokenizer, datetime.now())
        self.max_new_tokens = max_new_tokens
        self._tokenizer_name, self._vocab_size = tokenizer.name, vocab_size

    @property
    @abstractmethod
    def parameters(self) -> int:
        """The number of the model's parameters."""

    @property
    def adapter(self) -> str | None:
        """The active adapter's name; None is the base."""
        return None

    @property
    def adapter_names(self) -> Sequence[str]:
        """The adapters that `use_adapter` can switch to."""
        return ()

    @abstractmethod
    def add_adapter(self, name: str, folder: Path) -> None:
        """Register the adapter in a PEFT folder, not yet active. Raises UserError: it cannot be used here."""

    @abstractmethod
    def use_adapter(self, name: str) -> None:
        """Switch to an adapter, or with "off" to the base; the conversation goes on. Raises UserError: no such one."""

    @abstractmethod
    def _continue(
        self, prompt_ids: list[int], on_text: Callable[[str], Any] | None, stop: Callable[[], bool]
    ) -> Continuation:
        """The model's answer to the tokens of a conversation, which leave room for at least one more."""

    def answer(
        self,
        message: str,
        on_text: Callable[[str], Any] | None = None,
        stop: Callable[[], bool] | None = None,
        on_recall: Callable[[Sequence[Found]], Any] | None = None,
    ) -> Answer:
        """Say something and hear the answer; both join the conversation.

        What is recalled for a message is in its own prompt only, and no part of the conversation.

        Args:
            message: what the user says.
            on_text: called with each piece of the answer.
            stop: asked while the answer grows whether to break it off.
            on_recall: called before the answer with what is recalled for it, if that is anything.

        Raises:
            UserError: the message is too long, or the conversation does not suit the template, or the memory cannot be
                read: nothing was said then. Or the memory cannot be written, which happens after the answer.
        """
        before = list(self.messages)
        earlier = [turn["content"] for turn in before if turn["role"] == "user"]
        self.messages.append({"role": "user", "content": message})
        try:
            found = [] if self.recall is None else self.recall.search(message, earlier)
            prompt_ids, forgotten, recalled = self._prompt(found)
            if recalled and on_recall is not None:
                on_recall(recalled)
            started = time.perf_counter()
            added = self._continue(prompt_ids, on_text, stop or (lambda: False))
        except BaseException:
            self.messages = before
            raise
        seconds = time.perf_counter() - started
        self.messages.append({"role": "assistant", "content": added.text})
        rate = added.new_tokens / seconds
        answer = Answer(added.text, self.adapter, added.finish, forgotten, len(prompt_ids), added.new_tokens, rate)
        if self.recall is None:
            return answer
        return replace(answer, recalled=recalled, kept=self.recall.keep(message, recalled, earlier))

    def undo(self) -> str:
        """Take the last message and its answer back; returns the message. Raises UserError: nothing was said yet."""
        if not self.messages:
            raise UserError("nothing has been said yet")
        self.messages.pop()
        return self.messages.pop()["content"]

    def _prompt(self, found: Sequence[Found]) -> tuple[list[int], int, tuple[Found, ...]]:
        """The conversation's tokens, how many of its oldest messages had to go, and what of `found` is in it.

        Messages go for a quarter of the context, and what was found goes before the message itself would not fit.
        """
        reserve = min(self.max_new_tokens, self.context // 4)
        forgotten = 0
        block = self._block(found)
        while True:
            turns = placed(self.messages, self.system, block.text, takes_system=not block.text or self._takes_system)
            try:
                prompt_ids = self.encoder.encode_prompt(turns)
            except RecordError as error:
                raise UserError(str(error)) from error
            if max(prompt_ids) >= self._vocab_size:
                raise UserError(
                    f"the tokenizer {self._tokenizer_name} writes token {max(prompt_ids)}, and the model knows "
                    f"{self._vocab_size}: use the tokenizer that it was trained with"
                )
            if len(prompt_ids) + reserve <= self.context:
                return prompt_ids, forgotten, block.used
            if len(self.messages) == 1:
                if not block.text:
                    break
                block = Block()
                continue
            # A question goes with its answer: most templates want users and assistants to take turns.
            del self.messages[:2]
            forgotten += 2
        if len(prompt_ids) < self.context:
            return prompt_ids, forgotten, ()
        raise UserError(
            f"the message makes a prompt of {len(prompt_ids)} tokens, too many for a context of {self.context} that "
            "must hold the answer, too: shorten it, or the system text"
        )

    @cached_property
    def _takes_system(self) -> bool:
        return takes_system(self.encoder)

    @cached_property
    def _control(self) -> tuple[str, ...]:
        return control_texts(self.encoder)

    def _block(self, found: Sequence[Found]) -> Block:
        """What is recalled, within its budget and a quarter of the context."""
        if self.recall is None or not found:
            return Block()
        most = min(self.recall.most_tokens, self.context // 4)
        return rendered(found, most, self.encoder.length, self._control)


def turn_ends(encoder: ChatEncoder, special_ids: set[int]) -> set[int]:
    """The tokens that the chat template ends an assistant's turn with, its last special ones.

    Args:
        encoder: the conversation's encoder.
        special_ids: the tokenizer's special tokens.
    """
    ends: set[int] = set()
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}] * 2
    try:
        (sample,) = encoder.encode([encoder.render(Conversation("a conversation", turns))])
    except RecordError:  # a template that rewrites its turns cannot tell where one ends
        return ends
    # A turn's last tokens, and those of a turn that another one follows: templates may end these otherwise.
    ending = True
    for token, trained in reversed(list(zip(sample.input_ids.tolist(), sample.trained.tolist(), strict=True))):
        ending = not trained or (ending and token in special_ids)
        ends |= {token} if trained and ending else set()
    return ends
