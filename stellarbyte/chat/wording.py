"""What a chat template writes around messages, and whether it has a place for a system message."""

import itertools
import re

from stellarbyte.chat.encoding import ChatEncoder
from stellarbyte.chat.turns import Places
from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import RecordError

_SYSTEM = {"role": "system", "content": "an order"}
_TURNS = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}] * 2
_LAST = {"role": "user", "content": "question"}

# Headers such as [INST], <<SYS>> or ### Answer:, and, right before what somebody says, such as User:
_MARKED = re.compile(r"[^\w\s].*\w.*")
_NAMED = re.compile("\\w.*[:\uff1a]")


def takes_system(encoder: ChatEncoder) -> bool:
    """Whether the template writes a system message: some refuse one, and some leave it out without a word."""
    places = _places(encoder, [_SYSTEM, _LAST])
    return places is not None and (0, "content") in places.fields


def control_texts(encoder: ChatEncoder) -> tuple[str, ...]:
    """What a message must not seem to write: special tokens, and the headers that the template writes around turns."""
    found = set(encoder.special_tokens)
    special = re.compile("|".join(map(re.escape, sorted(found, key=len, reverse=True))) or "(?!)")
    for messages in ([*_TURNS, _LAST], [_SYSTEM, *_TURNS, _LAST]):
        places = _places(encoder, messages)
        if places is None:
            continue
        for said, characters in itertools.groupby(zip(places.said, places.text, strict=True), key=lambda pair: pair[0]):
            if said:
                continue
            written = "".join(character for _, character in characters)
            lines = special.sub("\n", written).strip().splitlines()
            for line in (*written.splitlines(), *lines):
                # A header as a whole, and each of its words that has the form of one.
                found |= {piece for piece in (line.strip(), *line.split()) if _MARKED.fullmatch(piece)}
            found |= {line.strip() for line in lines[-1:] if _NAMED.fullmatch(line.strip())}
    return tuple(sorted(found))


def _places(encoder: ChatEncoder, messages: list[dict[str, str]]) -> Places | None:
    """The places of a conversation's prompt; None if the template refuses it."""
    try:
        return encoder.prompt_places(messages)
    except (RecordError, UserError):
        return None
