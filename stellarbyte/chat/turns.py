"""Finds in a rendered conversation the assistant's turns, which are what is trained on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stellarbyte.chat.conversations import Conversation
from stellarbyte.chat.origins import TOOLS
from stellarbyte.chat.template import RenderedText, split_thought
from stellarbyte.records.bad_records import RecordError

Span = tuple[int, int]
"""Two places in a text: the first character, and the one after the last."""

_NOBODY = np.iinfo(np.int64).min
_ADVICE = "put {% generation %} marks into the template"


@dataclass(frozen=True)
class Turn:
    """A turn of the assistant: its places in the text, and whether its end is trained on."""

    spans: tuple[Span, ...]
    ends: bool


class Places:
    """For each character of a rendered text: the message that says it, the message of its loop's turn, its block."""

    def __init__(self, rendered: RenderedText) -> None:
        self.text = str.__str__(rendered.text)
        codes = np.frombuffer(rendered.text.origins.encode("utf-32-le", "surrogatepass"), np.uint32)
        origins = rendered.origins

        def of_each(values: Iterable[int | None]) -> np.ndarray:
            return np.array([_NOBODY if value is None else value for value in values], np.int64)[codes]

        self.message = of_each(origin.message for origin in origins)
        self.inside = of_each(origin.inside for origin in origins)
        self.block = of_each(origin.block for origin in origins)
        self.said = self.message != _NOBODY
        """Whether a character comes from the conversation, not from the template."""
        self.fields = {(origins[code].message, origins[code].field) for code in np.unique(codes).tolist()}
        """The (message, field) pairs of which the text has at least one character."""


def marked_turns(places: Places, conversation: Conversation) -> dict[int, Turn]:
    """The assistant's turns by the template's {% generation %} blocks.

    Raises:
        RecordError: a block holds words of somebody else, or turns of weight 0 and of weight 1.
    """
    where, messages = conversation.where, conversation.messages
    marked = places.block > 0
    for message in np.unique(places.message[marked & places.said]).tolist():
        if message < 0 or messages[message]["role"] != "assistant":
            name = f"messages.{message}" if message >= 0 else "tools or several messages"
            raise RecordError(f"{where}: the chat template's {{% generation %}} marks hold words of {name}: mend them")
    spans: dict[int, list[Span]] = {}
    owner = _NOBODY
    for start, stop in _runs(marked, places.block):
        owners = np.unique(places.message[start:stop][places.said[start:stop]]).tolist()
        if len(owners) > 1:
            spans.update({message: [] for message in owners[:-1]})
            if len({message in conversation.untrained for message in owners}) > 1:
                raise RecordError(f"{where}: one {{% generation %}} block holds turns of weight 0 and of weight 1")
        if owners:
            owner = owners[-1]
        elif places.inside[start] != _NOBODY:
            owner = int(places.inside[start])
        spans.setdefault(owner, []).append((start, stop))
    turns: dict[int, Turn] = {}
    for message, found in spans.items():
        for index in range(len(found) - 1, 0, -1):  # adjacent blocks are one stretch
            if found[index - 1][1] == found[index][0]:
                found[index - 1 : index + 1] = [(found[index - 1][0], found[index][1])]
        own = np.flatnonzero(marked & (places.message == message))
        last = int(own[-1]) + 1 if len(own) else 0
        ends = any(places.text[max(start, last) : stop].strip() for start, stop in found)
        turns[message] = Turn(tuple(found), ends or not found)
    return turns


def found_turns(
    places: Places, conversation: Conversation, prompts: Sequence[str], special_tokens: dict[int, int]
) -> dict[int, Turn]:
    """The assistant's turns in the text of a template without marks.

    A turn begins after a generation prompt, the first of `prompts` that stands there, or else with the assistant's
    first character. It ends with the text that the template writes after the assistant's last character in the same
    turn of its loop, without trailing white space, or else with a special token right after that character. The last
    turn includes the special tokens that end the whole conversation.

    Args:
        places: the places of the rendered text.
        conversation: the conversation that was rendered.
        prompts: the template's generation prompts.
        special_tokens: start -> stop of each special token in the text.

    Raises:
        RecordError: words of somebody else stand within a turn.
    """
    turns: dict[int, Turn] = {}
    for index, message in enumerate(conversation.messages):
        of_message, in_turn = places.message == index, places.inside == index
        # The turn of a tool that answers may repeat the name of the function that the assistant called.
        own = np.flatnonzero(of_message & in_turn if (of_message & in_turn).any() else of_message)
        if message["role"] != "assistant" or not len(own):
            continue
        first, last = int(own[0]), int(own[-1]) + 1
        others = places.said & ~of_message
        if others[first:last].any() or (others & in_turn).any():
            raise RecordError(
                f"{conversation.where} cannot be traced through the chat template, which writes other words between "
                f"those of messages.{index}: {_ADVICE}"
            )
        of_turn = in_turn & ~places.said
        before = first - _length(of_turn[:first][::-1])
        found = ((places.text.find(prompt, before, first), len(prompt)) for prompt in prompts)
        start = next((at + length for at, length in found if at >= 0), first)
        behind = last + _length(of_turn[last:])
        end = last + len(places.text[last:behind].rstrip())
        if end == last:
            end = special_tokens.get(last, last)
        if index == len(conversation.messages) - 1:
            end = _through_special_tokens(places.text, end, special_tokens)
        turns[index] = Turn(((start, end),), end > last)
    return turns


def unwritten(places: Places, conversation: Conversation) -> int:
    """The number of messages that the template leaves out, the assistant's not counted.

    Raises:
        RecordError: the template leaves out the tools, calls of tools, or the assistant's words.
    """
    where, count = conversation.where, 0
    if conversation.tools and not any(message == TOOLS for message, _ in places.fields):
        raise RecordError(f"{where} has tools, which the chat template leaves out: use one that writes them")
    if any(message is not None and message < TOOLS for message, _ in places.fields):
        return 0  # several messages are written as one text
    for index, message in enumerate(conversation.messages):
        fields = {field for number, field in places.fields if number == index}
        if message.get("tool_calls") and "tool_calls" not in fields:
            raise RecordError(f"{where} has tool_calls, which the chat template leaves out: use one that writes them")
        if message["role"] != "assistant":
            count += "content" not in fields
            continue
        thought, answer = split_thought(message["content"])
        if "content" not in fields if answer.strip() else thought and not fields:
            raise RecordError(
                f"{where} cannot be traced through the chat template, which leaves out or rewrites what the assistant "
                f"says in messages.{index}: {_ADVICE}, or use one that writes it"
            )
    return count


def _through_special_tokens(text: str, place: int, special_tokens: dict[int, int]) -> int:
    """The place after all special tokens that stand at `place`, with white space between them."""
    at = place
    while at < len(text):
        if at in special_tokens:
            place = at = special_tokens[at]
        elif text[at].isspace():
            at += 1
        else:
            break
    return place


def _runs(flags: np.ndarray, labels: np.ndarray) -> list[Span]:
    """The spans of neighbours that have a flag and the same label."""
    if not flags.any():
        return []
    cuts = np.flatnonzero((flags[1:] != flags[:-1]) | (labels[1:] != labels[:-1])) + 1
    borders = [0, *cuts.tolist(), len(flags)]
    return [(start, stop) for start, stop in pairwise(borders) if flags[start]]


def _length(flags: np.ndarray) -> int:
    """The number of flags that are set at the beginning."""
    unset = np.flatnonzero(~flags)
    return int(unset[0]) if len(unset) else len(flags)
