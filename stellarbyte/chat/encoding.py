"""Turns conversations into tokens, and tells exactly which of them are trained on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from stellarbyte.chat.characters import check_characters, check_written
from stellarbyte.chat.conversations import Conversation
from stellarbyte.chat.special_names import with_private_names
from stellarbyte.chat.template import REASONING, THOUGHT, ChatTemplate, RenderedText, has_thought
from stellarbyte.chat.told import Told
from stellarbyte.chat.turns import Places, Span, Turn, found_turns, marked_turns, unwritten
from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import RecordError
from stellarbyte.tokenizer_file import works

# It counts up whenever a conversation gets other tokens or other marks of what is trained on, so that what was prepared
# before is not taken for what would be prepared now. By version 1 others' words could be marked as the assistant's.
ENCODING_VERSION = 2


@dataclass(frozen=True)
class ChatTokenizer:
    """What chat data need of a tokenizer, as plain data.

    Args:
        name: the tokenizer's folder, for errors.
        tokenizer_json: the text of its tokenizer.json.
        special_tokens: bos_token and the like, by name, as templates see them.
        template: the chat template, Jinja; None if there is none, which is enough for plain texts.
        tool_template: the template of conversations with tools, if they have one of their own.
    """

    name: str
    tokenizer_json: str
    special_tokens: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    tool_template: str | None = None


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A rendered conversation: its text, with private names for special tokens, and the spans that are trained on."""

    where: str
    text: str
    spans: list[Span]
    told: Told = field(default_factory=Told)


@dataclass(frozen=True, slots=True)
class Sample:
    """The tokens of a conversation, int32 [T], and whether each is trained on, bool [T]; `where` is its file:line."""

    where: str
    input_ids: np.ndarray
    trained: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)

    def fitting(self, length: int, on_too_long: Literal["truncate", "drop", "split"]) -> list["Sample"]:
        """The sample in pieces of at most `length` tokens: one, several or none."""
        if len(self) <= length:
            return [self]
        if on_too_long == "drop":
            return []
        pieces = []
        for start in [0] if on_too_long == "truncate" else range(0, len(self), length):
            trained = self.trained[start : start + length].copy()
            trained[0] = False  # the token that predicts it is in the piece before
            pieces.append(replace(self, input_ids=self.input_ids[start : start + length], trained=trained))
        return pieces


class ChatEncoder:
    """Renders conversations with a chat template and encodes them with a tokenizer.

    The tokens are those of Transformers' `apply_chat_template`, except that a special token written in a message stays
    text. Every character of the text is known to come from a certain message or from the template, so only turns of the
    assistant are trained on. A turn is what the template's {% generation %} blocks hold; in a template without them, it
    is the text from the generation prompt to the end of the turn.

    Args:
        tokenizer: the tokenizer with its templates.
        today: the date for templates that ask for it; None leaves them without one.

    Raises:
        UserError: a template is not Jinja, or the tokenizer has special tokens that cannot be told from text.
    """

    def __init__(self, tokenizer: ChatTokenizer, today: datetime | None = None) -> None:
        self._tokenizer = tokenizer
        sources = {source for source in (tokenizer.template, tokenizer.tool_template) if source is not None}
        self._templates = {source: _Template(source, tokenizer.special_tokens, today) for source in sources}
        self._names, self._backend = with_private_names(tokenizer.tokenizer_json, tokenizer.name)
        longest_first = sorted(self._names, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) matches nothing

    def render(self, conversation: Conversation, loss_on: Literal["assistant", "all"] = "assistant") -> RenderedChat:
        """A conversation as the text to encode; with loss_on "all" every token is trained on.

        Raises:
            RecordError: the conversation does not suit the template, cannot be traced through it, or holds a code point
                that is no character.
            UserError: the conversation has messages and there is no template, or the template exceeds its bounds.
        """
        where, messages = conversation.where, conversation.messages
        if not messages:
            check_characters(conversation.text, where)
            bos, eos = (self._special_name(name) for name in ("bos_token", "eos_token"))
            text = bos + conversation.text + eos
            return RenderedChat(where, text, [(0, len(text))])

        check_characters([*messages, *conversation.tools], where)
        template = self._template(where, bool(conversation.tools))
        told = _check_keys(template, conversation)
        rendered = template.render(messages, conversation.tools, where)
        places = Places(rendered)
        check_written(places.text)
        left_out = unwritten(places, conversation)
        special = self._special_tokens(places)
        text, moved = self._named(places.text, special)
        thoughtless = sum(
            message["role"] == "assistant" and has_thought(message) and (index, THOUGHT) not in places.fields
            for index, message in enumerate(messages)
        )
        told += Told(thoughtless=thoughtless, unwritten=left_out)
        if loss_on == "all":
            if conversation.untrained and any(messages[i]["role"] == "assistant" for i in conversation.untrained):
                raise RecordError(
                    f"{where} has turns that are not to be trained on, of weight 0 or in its prompt, and loss_on all "
                    "trains on every token: set data.loss_on to assistant"
                )
            return RenderedChat(where, text, [(0, len(text))], told)
        if template.marks_turns:
            turns = marked_turns(places, conversation)
        else:
            turns = found_turns(places, conversation, template.prompts, special)
        spans = _trained_spans(conversation, turns)
        unended = sum(not turn.ends for index, turn in turns.items() if index not in conversation.untrained)
        told += Told(unended)
        return RenderedChat(where, text, [(int(moved[start]), int(moved[stop])) for start, stop in spans], told)

    def encode(self, chats: Sequence[RenderedChat]) -> list[Sample]:
        """A sample for each chat, encoded on all cores.

        The first token is never trained on, because nothing predicts it.
        """
        with works(self._tokenizer.name):
            encodings = self._backend.encode_batch([chat.text for chat in chats], add_special_tokens=False)
        samples = []
        for chat, encoding in zip(chats, encodings, strict=True):
            offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            trained = np.zeros(len(offsets), bool)
            for start, end in chat.spans:
                trained |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
            trained[:1] = False
            samples.append(Sample(chat.where, np.array(encoding.ids, np.int32), trained))
        return samples

    def encode_prompt(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The tokens of a conversation up to the place where the assistant answers.

        Raises:
            RecordError, UserError: as `render` does, and where there is no token at all.
        """
        where = "the conversation"
        places = self.prompt_places(messages, where)
        text, _ = self._named(places.text, self._special_tokens(places))
        with works(self._tokenizer.name):
            ids = list(self._backend.encode(text, add_special_tokens=False).ids)
        if not ids:
            raise RecordError(f"the chat template writes nothing for {where}, so that there is nothing to answer")
        return ids

    def prompt_places(self, messages: Sequence[dict[str, Any]], where: str = "the conversation") -> Places:
        """Who says what in the prompt that `encode_prompt` encodes; raises as that does."""
        check_characters(messages, where)
        template = self._template(where, with_tools=False)
        places = Places(template.render(messages, [], where, add_generation_prompt=True))
        check_written(places.text)
        return places

    def length(self, text: str) -> int:
        """The number of a text's tokens where it stands in a message. Raises UserError: the tokenizer fails on it."""
        with works(self._tokenizer.name):
            return len(self._backend.encode(text, add_special_tokens=False).ids)

    @property
    def special_tokens(self) -> Sequence[str]:
        """The tokenizer's special tokens, as texts spell them."""
        return list(self._names)

    def _template(self, where: str, with_tools: bool) -> "_Template":
        source = self._tokenizer.tool_template if with_tools else None
        source = source or self._tokenizer.template
        if source is None:
            raise UserError(
                f"{where} is a conversation, but the tokenizer {self._tokenizer.name} has no chat template: "
                "set data.chat_template to a Jinja file or to stellarbyte"
            )
        return self._templates[source]

    def _special_name(self, name: str) -> str:
        return self._names.get(self._tokenizer.special_tokens.get(name) or "", "")

    def _special_tokens(self, places: Places) -> dict[int, int]:
        """Start -> stop of each special token that the template wrote."""
        found: dict[int, int] = {}
        at = 0
        while match := self._special.search(places.text, at):
            at = match.end()
            if places.said[match.start() : at].any():
                at = match.start() + 1
            else:
                found[match.start()] = at
        return found

    def _named(self, text: str, special: dict[int, int]) -> tuple[str, np.ndarray]:
        """(the text with private names for special tokens, the new place of each old place of the text, int64)."""
        widths = np.ones(len(text), np.int64)
        pieces: list[str] = []
        at = 0
        for start, stop in special.items():
            pieces += [text[at:start], self._names[text[start:stop]]]
            widths[start + 1 : stop] = 0
            at = stop
        pieces.append(text[at:])
        return "".join(pieces), np.append(0, np.cumsum(widths))


class _Template(ChatTemplate):
    @cached_property
    def prompts(self) -> list[str]:
        """The generation prompts: the text before an answer, with and without the opening of a thought.

        The list is empty if the template writes none.
        """
        try:
            rendered: RenderedText = self.render(
                [{"role": "user", "content": "x"}], [], "a question", add_generation_prompt=True
            )
        except RecordError:
            return []
        places = Places(rendered)
        behind = np.flatnonzero((places.inside == 0) | places.said)
        whole = places.text[int(behind[-1]) + 1 :] if len(behind) else ""
        return [prompt for prompt in (whole, whole.partition("<think>")[0]) if prompt.strip()]


def _trained_spans(conversation: Conversation, turns: dict[int, Turn]) -> list[Span]:
    """The spans of the turns that are trained on, in the order of the text.

    Raises:
        RecordError: a turn of the assistant is not found, or lies inside another.
    """
    spans: list[Span] = []
    for index, message in enumerate(conversation.messages):
        if message["role"] != "assistant" or index in conversation.untrained:
            continue
        if index not in turns:
            raise RecordError(
                f"{conversation.where} cannot be traced through the chat template: what messages.{index} says is not "
                "where it could be trained on; put {% generation %} marks around it in the template"
            )
        spans += turns[index].spans
    if any(start < stop for (_, stop), (start, _) in pairwise(spans)):
        raise RecordError(f"{conversation.where} cannot be traced through the chat template, which mixes its turns")
    return spans


def _check_keys(template: ChatTemplate, conversation: Conversation) -> Told:
    """Refuses keys that the template certainly leaves out, as its source does not contain their names."""
    where, messages = conversation.where, conversation.messages
    used = {key for message in messages for key in message}
    for name, present in (("tools", bool(conversation.tools)), ("tool_calls", "tool_calls" in used)):
        if present and name not in template.words:
            raise RecordError(f"{where} has {name}, which the chat template leaves out: use one that writes them")
    for key in REASONING:
        if any(message.get(key) for message in messages) and not template.words & set(REASONING):
            raise RecordError(
                f"{where} has {key}, which the chat template leaves out: use one that writes it, or put the thinking "
                "into the content"
            )
    return Told(unused=frozenset(used - {"role", "content", *REASONING} - template.words))
