"""Turns conversations into tokens and, exactly, which of them are trained on."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import RecordError
from stellarbyte_torch.conversations import Conversation
from stellarbyte_torch.special_names import PRIVATE, with_private_names

_GENERATION_MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")

# Marks that stand in a conversation while it is rendered: private characters, too, behind those of the special tokens.
_TEXT, _TEXT_END = "\U0010fff0", "\U0010fff1"  # around what only looks like a special token
_TURN, _TURN_END = "\U0010fff2", "\U0010fff3"  # around what the assistant says


@dataclass(frozen=True, slots=True)
class Sample:
    """Tokens of a conversation, int32 [T], and whether each is trained on, bool [T]; `where` is its file:line."""

    where: str
    input_ids: np.ndarray
    trained: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)


class ChatEncoder:
    """Renders conversations with a chat template and encodes them with a tokenizer.

    The tokens are those of `tokenizer.apply_chat_template`, but that a special token written in a message stays text.

    Trained on are the tokens with a character between the template's {% generation %} marks. A template without them is
    given the assistant's turns with marks of our own around their content: trained on are then its tokens and a
    special token right behind it, which ends the turn.

    Args:
        tokenizer: with a tokenizer.json; it is not changed.
        chat_template: Jinja; the tokenizer's own by default.

    Raises:
        UserError: there is no template, or the tokenizer has no tokenizer.json or no tokens that the template needs.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = chat_template
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path} has no tokenizer.json, without which no token can be "
                "traced to its characters: use a fast tokenizer"
            )
        self._names, self._backend = with_private_names(backend, tokenizer.name_or_path)
        longest_first = sorted(self._names, key=len, reverse=True)
        special = "|".join(map(re.escape, longest_first)) or "(?!)"  # (?!) matches nothing
        self._special = re.compile(special)
        self._marks = re.compile(
            f"{_TEXT}(?P<text>{special}){_TEXT_END}|(?P<special>{special})|[\U0010fff0-\U0010fff3]"
        )

    def encode(self, conversations: Sequence[Conversation], loss_on: str = "assistant") -> list[Sample | RecordError]:
        """A sample for each conversation, or what is wrong with it; loss_on "all" trains on every token.

        The first token is never trained on, for nothing predicts it.
        """
        texts: list[str] = []
        results: list[Any] = []  # spans, then samples; or errors
        for conversation in conversations:
            try:
                text, spans = self._render(conversation, loss_on)
            except RecordError as error:
                results.append(error)
            else:
                texts.append(text)
                results.append(spans)
        encodings = iter(self._backend.encode_batch(texts, add_special_tokens=False))
        for index, spans in enumerate(results):
            if not isinstance(spans, RecordError):
                results[index] = _sample(conversations[index].where, next(encodings), spans)
        return results

    def encode_prompt(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Tokens of a conversation up to where the assistant is to answer.

        Raises:
            RecordError: as `encode` says of a conversation.
            UserError: there is no template.
        """
        where = "the conversation"
        template = self._chat_template(where, with_tools=False)
        guarded = [self._guarded(message, where) for message in messages]
        text, _ = self._filled_in(template, guarded, [], where, add_generation_prompt=True)
        text, _, _ = self._named(text, [], where)
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def _render(self, conversation: Conversation, loss_on: str) -> tuple[str, list[tuple[int, int]]]:
        """The text to encode, in which special tokens have their private names, and its trained stretches."""
        where = conversation.where
        messages = [self._guarded(message, where) for message in conversation.messages]
        tools = [self._guarded(tool, where) for tool in conversation.tools]
        if not messages:
            text = self._guarded(conversation.text, where)
            bos, eos = (self._tokenizer.special_tokens_map.get(name, "") for name in ("bos_token", "eos_token"))
            text, _, _ = self._named(bos + text + eos, [], where)
            return text, [(0, len(text))]

        template = self._chat_template(where, bool(tools))
        has_calls = any("tool_calls" in message for message in messages)
        for word, used in (("tools", bool(tools)), ("tool_calls", has_calls)):
            if used and word not in template:
                raise RecordError(f"{where} has {word}, which the chat template leaves out: use one that writes them")
        text, marks = self._filled_in(template, messages, tools, where)
        text, spans, _ = self._named(text, marks, where)
        if loss_on == "all":
            return text, [(0, len(text))]
        if _GENERATION_MARK.search(template):
            return text, spans
        if has_calls:
            raise RecordError(
                f"{where} has tool_calls, which only {{% generation %}} marks can tell from the rest of the text: "
                "put them into the chat template"
            )
        return text, self._turns(template, messages, tools, where, text)

    def _chat_template(self, where: str, with_tools: bool) -> str:
        try:
            # A tokenizer may have several, one of them for tools.
            return self._tokenizer.get_chat_template(self._template, [{}] if with_tools else None)
        except ValueError:
            raise UserError(
                f"{where} is a conversation, but the tokenizer {self._tokenizer.name_or_path} has no chat template: "
                "set data.chat_template to a Jinja file or to stellarbyte"
            ) from None

    def _filled_in(
        self, template: str, messages: list[Any], tools: list[Any], where: str, *, add_generation_prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        with_marks = _GENERATION_MARK.search(template) is not None
        special_tokens: dict[str, Any] = self._tokenizer.special_tokens_map
        try:
            rendered: Any = render_jinja_template(
                conversations=[messages],
                tools=tools or None,
                chat_template=template,
                return_assistant_tokens_mask=with_marks,
                add_generation_prompt=add_generation_prompt,
                **special_tokens,
            )
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"the chat template is not Jinja: {error.message} in its line {error.lineno}") from None
        except (jinja2.TemplateError, TypeError) as error:
            raise RecordError(f"{where} does not suit the chat template ({error})") from None
        (text,), marks = rendered
        return text, marks[0] if with_marks else []

    def _turns(
        self, template: str, messages: list[Any], tools: list[Any], where: str, expected: str
    ) -> list[tuple[int, int]]:
        """Where the assistant's turns stand in the text `expected`, by marks around their content.

        The marks go around all of it, or, if the template cuts white space off, around what is left.
        """
        for tight in (False, True):
            marked = [_with_turn_marks(message, tight) for message in messages]
            text, _ = self._filled_in(template, marked, tools, where)
            text, _, turns = self._named(text, [], where)
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

    def _named(
        self, text: str, spans: list[tuple[int, int]], where: str
    ) -> tuple[str, list[tuple[int, int]], list[tuple[int, int]]]:
        """The text without marks, special tokens by their private names, and where spans and marked turns are in it.

        A turn takes in the special token right behind it.
        """
        pieces: list[str] = []
        turns: list[tuple[int, int]] = []
        befores, afters = [0], [0]  # places in `text` and where they went
        at = length = 0
        turn: int | None = None
        closed = -1  # where a turn ended that the special token right behind it may lengthen, once
        for match in self._marks.finditer(text):
            pieces.append(text[at : match.start()])
            length += match.start() - at
            if match["special"]:
                if length == closed:
                    turns[-1], closed = (turns[-1][0], length + 1), -1
                replacement = self._names[match["special"]]
            else:
                replacement = match["text"] or ""
                if match[0] == _TURN:
                    turn = length
                elif match[0] == _TURN_END and turn is not None:
                    turns.append((turn, length))
                    closed = length
                elif not match["text"]:
                    raise RecordError(f"{where} has a special token's text, which the chat template takes apart")
            pieces.append(replacement)
            befores += [match.start(), match.end()]
            afters += [length, length + len(replacement)]
            at, length = match.end(), length + len(replacement)
        pieces.append(text[at:])

        def moved(place: int) -> int:
            index = bisect_right(befores, place) - 1
            return afters[index] + place - befores[index]

        return "".join(pieces), [(moved(start), moved(end)) for start, end in spans], turns


def _with_turn_marks(message: dict[str, Any], tight: bool) -> dict[str, Any]:
    if message["role"] != "assistant" or not message["content"].strip():
        return message
    said = message["content"].strip() if tight else message["content"]
    before, _, after = message["content"].partition(said)
    return {**message, "content": f"{before}{_TURN}{said}{_TURN_END}{after}"}


def _sample(where: str, encoding: tokenizers.Encoding, spans: list[tuple[int, int]]) -> Sample:
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    trained = np.zeros(len(offsets), bool)
    for start, end in spans:
        trained |= (offsets[:, 0] < end) & (offsets[:, 1] > start)
    trained[:1] = False
    return Sample(where, np.array(encoding.ids, np.int32), trained)
