"""Turns conversations into tokens and, exactly, which of them are trained on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tokenizers

from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import RecordError
from stellarbyte_jax.data.chat_template import TURN, TURN_END, ChatTemplate
from stellarbyte_jax.data.conversations import Conversation
from stellarbyte_jax.data.special_names import PRIVATE, with_private_names
from stellarbyte_jax.data.tokenizer import BOS_TOKEN, EOS_TOKEN, Tokenizer

# A token of a sample, and whether it is trained on.
SAMPLE_DTYPE = np.dtype([("token", np.int32), ("trained", np.bool_)])

# Marks that stand in a conversation while it is rendered, around what only looks like a special token.
_TEXT, _TEXT_END = "\U0010fff0", "\U0010fff1"

_Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """The text to encode, in which special tokens have their private names, and its trained stretches."""

    text: str
    spans: list[_Span]


class ChatEncoder:
    """Renders conversations with a chat template and encodes them with a tokenizer.

    The tokens are those of Transformers' `apply_chat_template`, but that a special token written in a message stays
    text.

    Trained on are the tokens with a character between the template's {% generation %} marks. A template without them is
    given the assistant's turns with marks of our own around their content: trained on are then its tokens and a
    special token right behind it, which ends the turn.

    Args:
        tokenizer: it is not changed.
        template: Jinja, or None where there is none, which only plain texts can do without.

    Raises:
        UserError: the template is not Jinja, or the tokenizer has special tokens that cannot be told from text.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None) -> None:
        self._tokenizer_name = tokenizer.name
        self._template = None if template is None else ChatTemplate(template, tokenizer)
        self._names, self._backend = with_private_names(tokenizer)
        longest_first = sorted(self._names, key=len, reverse=True)
        special = "|".join(map(re.escape, longest_first))
        self._special = re.compile(special)
        self._marks = re.compile(
            f"{_TEXT}(?P<text>{special}){_TEXT_END}|(?P<special>{special})|[{_TEXT}{_TEXT_END}{TURN}{TURN_END}]"
        )

    def render(self, conversation: Conversation, loss_on: Literal["assistant", "all"] = "assistant") -> RenderedChat:
        """A conversation as the text to encode; loss_on "all" trains on every token.

        Raises:
            RecordError: it does not suit the template, cannot be traced through it, or holds what is no character.
            UserError: it has messages and there is no template.
        """
        where = conversation.where
        if not conversation.messages:
            text = BOS_TOKEN + self._guarded(conversation.text, where) + EOS_TOKEN
            text, _ = self._named(text, where)
            return RenderedChat(text, [(0, len(text))])

        template = self._template
        if template is None:
            raise UserError(
                f"{where} is a conversation, but the tokenizer {self._tokenizer_name} has no chat template: "
                "set data.chat_template to a Jinja file or to stellarbyte"
            )
        messages = [self._guarded(message, where) for message in conversation.messages]
        tools = [self._guarded(tool, where) for tool in conversation.tools]
        has_calls = any("tool_calls" in message for message in messages)
        for word, used in (("tools", bool(tools)), ("tool_calls", has_calls)):
            if used and word not in template.source:
                raise RecordError(f"{where} has {word}, which the chat template leaves out: use one that writes them")
        text, spans = self._named(template.render(messages, tools, where), where)
        if loss_on == "all":
            return RenderedChat(text, [(0, len(text))])
        if template.marks_turns:
            return RenderedChat(text, spans)
        if has_calls:
            raise RecordError(
                f"{where} has tool_calls, which only {{% generation %}} marks can tell from the rest of the text: "
                "put them into the chat template"
            )
        return RenderedChat(text, self._turns(template, messages, tools, where, text))

    def encode(self, chats: Sequence[RenderedChat]) -> list[np.ndarray]:
        """Each chat's tokens and which are trained on, SAMPLE_DTYPE [T]; on all cores.

        The first token is never trained on, for nothing predicts it.
        """
        encodings = self._backend.encode_batch([chat.text for chat in chats], add_special_tokens=False)
        return [_sample(encoding, chat.spans) for encoding, chat in zip(encodings, chats, strict=True)]

    def _turns(
        self, template: ChatTemplate, messages: list[Any], tools: list[Any], where: str, expected: str
    ) -> list[_Span]:
        """Where the assistant's turns stand in the text `expected`, by marks around their content.

        The marks go around all of it, or, if the template cuts white space off, around what is left.
        """
        for tight in (False, True):
            marked = [_with_turn_marks(message, tight) for message in messages]
            text, turns = self._named(template.render(marked, tools, where), where, with_end_token=True)
            if text == expected:
                return turns
        raise RecordError(
            f"{where} cannot be traced through the chat template, which rewrites what the assistant says: "
            "put {% generation %} marks into the template"
        )

    def _guarded(self, value: Any, where: str) -> Any:
        """Strings with marks around what looks like a special token."""
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise RecordError(
                    f"{where} holds the lone surrogate U+{ord(value[error.start]):04X}, which is no character"
                ) from None
            private = PRIVATE.search(value)
            if private:
                raise RecordError(
                    f"{where} holds the private-use character U+{ord(private[0]):X}, of a range that we need "
                    "ourselves: take it out"
                )
            return self._special.sub(f"{_TEXT}\\g<0>{_TEXT_END}", value)
        if isinstance(value, dict):
            return {self._guarded(key, where): self._guarded(item, where) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._guarded(item, where) for item in value]
        return value

    def _named(self, text: str, where: str, with_end_token: bool = False) -> tuple[str, list[_Span]]:
        """The text without marks, special tokens by their private names, and where the marked turns are in it.

        A turn may take in the special token right behind it.
        """
        pieces: list[str] = []
        turns: list[_Span] = []
        at = length = 0
        turn: int | None = None
        closed = -1  # where a turn ended that the special token right behind it may lengthen, once
        for match in self._marks.finditer(text):
            pieces.append(text[at : match.start()])
            length += match.start() - at
            at = match.end()
            if match["special"]:
                pieces.append(self._names[match["special"]])
                if with_end_token and length == closed:
                    turns[-1], closed = (turns[-1][0], length + 1), -1
                length += 1
            elif match["text"]:
                pieces.append(match["text"])
                length += len(match["text"])
            elif match[0] == TURN:
                turn = length
            elif match[0] == TURN_END and turn is not None:
                turns.append((turn, length))
                closed = length
            else:
                raise RecordError(f"{where} has a special token's text, which the chat template takes apart")
        pieces.append(text[at:])
        return "".join(pieces), turns


def _with_turn_marks(message: dict[str, Any], tight: bool) -> dict[str, Any]:
    if message["role"] != "assistant" or not message["content"].strip():
        return message
    said = message["content"].strip() if tight else message["content"]
    before, _, after = message["content"].partition(said)
    return {**message, "content": f"{before}{TURN}{said}{TURN_END}{after}"}


def _sample(encoding: tokenizers.Encoding, spans: list[_Span]) -> np.ndarray:
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    sample = np.zeros(len(offsets), SAMPLE_DTYPE)
    sample["token"] = encoding.ids
    trained = sample["trained"]
    for start, end in spans:
        trained |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
    trained[:1] = False
    return sample
