"""Puts what a search has found into a prompt, as data between marks, within a budget of tokens."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from stellarbyte.memory.entries import Found
from stellarbyte.memory.escaping import broken, escaped, visible
from stellarbyte.memory.marks import CLOSING, NOTE, OPENING

_LONGEST_SOURCE = 80
_MORE = "…"
# A text with more characters for each token of the budget does not fit, and need not be looked at as a whole.
_CHARACTERS = 32


@dataclass(frozen=True)
class Block:
    """What is recalled into a prompt: the text between and with its marks, "" for nothing, and what is in it."""

    text: str = ""
    used: tuple[Found, ...] = ()


def rendered(
    found: Sequence[Found], most_tokens: int, tokens: Callable[[str], int], control: Iterable[str] = ()
) -> Block:
    """The found entries, the best first, as far as they fit.

    An entry that does not fit is left out, and those behind it are tried. Only of the very first a beginning is taken,
    up to the end of a line or else of a word.

    Args:
        found: what a search has found.
        most_tokens: the most tokens of the block, marks included.
        tokens: the number of a text's tokens.
        control: see `escaped`.
    """
    control = tuple(control)
    parts: list[str] = []
    used: list[Found] = []
    for one in found:
        too_long = len(one.entry.text) > _CHARACTERS * most_tokens
        part = "" if too_long else _part(len(parts) + 1, one, one.entry.text, control)
        if too_long or tokens(_joined([*parts, part])) > most_tokens:
            if one is not found[0]:
                continue
            part = _beginning(one, most_tokens, tokens, control)
            if not part:
                continue
        parts.append(part)
        used.append(one)
    return Block(_joined(parts), tuple(used)) if parts else Block()


def _part(number: int, found: Found, text: str, control: tuple[str, ...]) -> str:
    entry = found.entry
    day = datetime.fromtimestamp(entry.updated, UTC).date().isoformat()
    # A file's name is a stranger's, too.
    source = broken(" ".join(visible(entry.source).split())[:_LONGEST_SOURCE], control)
    return f"[{number}] {day}{f', {source}' if source else ''}\n{escaped(text, control)}"


def _beginning(found: Found, most_tokens: int, tokens: Callable[[str], int], control: tuple[str, ...]) -> str:
    """The entry's part with as much of its text as fits; "" where not even a few words do."""
    text = visible(found.entry.text[: _CHARACTERS * most_tokens])
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if tokens(_joined([_part(1, found, text[:middle] + _MORE, control)])) > most_tokens:
            too_long = middle
        else:
            fits = middle
    cut = text[:fits]
    end = max(cut.rfind("\n"), cut.rfind("。") + 1, cut.rfind(". ") + 1)
    end = end if end > fits // 2 else max(end, cut.rfind(" "))
    cut = cut[:end] if end > fits // 2 else cut
    return _part(1, found, cut.rstrip() + _MORE, control) if len(cut) >= 16 else ""


def _joined(parts: Sequence[str]) -> str:
    return "\n".join([OPENING, NOTE, *parts, CLOSING])


def placed(
    messages: Sequence[dict[str, str]], system: str | None, block: str, *, takes_system: bool
) -> list[dict[str, str]]:
    """The messages of a conversation with its system text and what is recalled, each where the model looks for it.

    The block follows the system text in its turn, or is a system turn of its own. Where the chat template has no place
    for one, it stands before the first user's words in that user's turn.

    Args:
        messages: the turns so far; at least one is the user's.
        system: the system text, if there is one.
        block: what is recalled, with its marks; may be empty.
        takes_system: whether the chat template writes system turns.
    """
    opening = "\n\n".join(filter(None, [system, block if takes_system else ""]))
    turns = [{"role": "system", "content": opening}] if opening else []
    put = bool(block) and not takes_system
    for message in messages:
        if put and message["role"] == "user":
            message, put = {**message, "content": f"{block}\n\n{message['content']}"}, False
        turns.append(message)
    assert not put, "a conversation without a user's turn"
    return turns
