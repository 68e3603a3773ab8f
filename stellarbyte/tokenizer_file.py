"""Checks an untrusted tokenizer.json before the tokenizers library acts on it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stellarbyte.errors import UserError, shown

MOST_TOKENS = 2**24
_LONGEST_ADDED = 4096
_LONGEST_EXPRESSION = 10_000
# The factor by which normalising may lengthen a text; usual normalizers write about one character for each.
_MOST_GROWTH = 1000


def check_tokenizer(content: Any, where: str) -> None:
    """Refuses files with which the tokenizers library would exhaust memory or time, or end the process.

    `where` names the file in errors.

    Raises:
        UserError: a token's number is invalid or larger than any vocabulary, the library cannot work with a merge or a
            pattern, or a text could grow without bounds.
    """
    try:
        _check(content)
    except UserError as error:
        raise UserError(f"{where} is not a tokenizer that can be used: {error}") from None


@contextmanager
def works(name: str) -> Iterator[None]:
    """Turns errors of the tokenizers library, while it encodes a text, into a sentence about the tokenizer `name`.

    Raises:
        UserError: the library gave up, for example because an expression takes too many steps on this text.
    """
    try:
        yield
    except BaseException as error:
        # The library raises a bare Exception, or panics in Rust, and a panic is not even an Exception.
        if type(error) is Exception or type(error).__name__ == "PanicException":
            raise UserError(f"the tokenizer {name} fails on a text: {_first_line(error)}") from None
        raise


def _check(content: Any) -> None:
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError("there is no model in it: use a tokenizer.json that the tokenizers library wrote")
    model = content["model"]
    vocabulary = model.get("vocab")
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    for number in ids:
        if type(number) is not int or not 0 <= number < MOST_TOKENS:
            raise UserError(f"model.vocab has the number {shown(number)}, expected 0 to {MOST_TOKENS - 1}")
    if len(set(ids)) < len(ids):
        raise UserError("model.vocab gives one number to two tokens")
    _check_merges(model)
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise UserError(f"added_tokens is {shown(added)}, expected a list of objects")
    for token in added:
        text, number = token.get("content"), token.get("id")
        if not isinstance(text, str) or not 1 <= len(text) <= _LONGEST_ADDED:
            raise UserError(f"added_tokens has the content {shown(text)}, expected 1 to {_LONGEST_ADDED} characters")
        if type(number) is not int or not 0 <= number < MOST_TOKENS:
            raise UserError(f"added_tokens has the id {shown(number)}, expected 0 to {MOST_TOKENS - 1}")
    _check_templates(content.get("post_processor"))
    growth = 1
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for node in _nodes(content.get(part)):
            growth *= _growth_by(node, part)
    if growth > _MOST_GROWTH:
        raise UserError(f"its normalizers make a text more than {_MOST_GROWTH} times as long")


def _check_merges(model: Mapping[str, Any]) -> None:
    """Refuses merges whose second half lacks the prefix, because the library cuts it off without looking."""
    prefix = model.get("continuing_subword_prefix")
    if not isinstance(prefix, str) or not prefix:
        return
    merges = model.get("merges")
    for merge in merges if isinstance(merges, list) else ():
        halves = merge.split(" ", 1) if isinstance(merge, str) else merge
        second = halves[1] if isinstance(halves, list) and len(halves) == 2 else None
        if not isinstance(second, str) or not second.startswith(prefix):
            raise UserError(f"model.merges has {shown(second)}, which lacks the continuing_subword_prefix {prefix!r}")


def _check_templates(processor: Any) -> None:
    """Refuses templates that name a special token missing from their list, because the library panics on them."""
    for node in _nodes(processor):
        known = node.get("special_tokens")
        pieces = [piece for name in ("single", "pair") for piece in _nodes(node.get(name))]
        for token in (piece["SpecialToken"] for piece in pieces if "SpecialToken" in piece):
            name = token.get("id") if isinstance(token, dict) else token
            if not isinstance(known, dict) or name not in known:
                raise UserError(f"post_processor names the special token {shown(name)}, which its special_tokens lack")


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """All objects in a part of the file. Recursion is safe, because the depth was bounded when the JSON was read."""
    if isinstance(node, dict):
        yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(inner)


def _growth_by(node: Mapping[str, Any], part: str) -> int:
    """The factor by which a step may lengthen a text. Raises UserError if the library would break on the step."""
    expression = node.get("Regex")
    if isinstance(expression, str):
        if len(expression) > _LONGEST_EXPRESSION:
            raise UserError(f"{part} has an expression of {len(expression)} characters")
        if _repeats_repetitions(expression):
            raise UserError(f"{part} has {shown(expression)}, a repetition of repetitions, which may take for ever")
    if node.get("type") not in ("Replace", "Prepend"):
        return 1
    written = node.get("prepend") if node["type"] == "Prepend" else node.get("content")
    if not isinstance(written, str) or len(written) > _MOST_GROWTH:
        raise UserError(f"{part} writes {shown(written)}, expected a text of at most {_MOST_GROWTH} characters")
    if isinstance(pattern := node.get("pattern"), dict) and pattern.get("String") == "":
        raise UserError(f"{part} replaces the empty text, which is everywhere")
    return 1 if node["type"] == "Prepend" else max(1, len(written))


def _repeats_repetitions(expression: str) -> bool:
    """Whether a group that contains an unbounded repetition is itself repeated without bound, as in (x+)+."""
    repeats = [False]  # for each open group, from the outside in: whether it contains an unbounded repetition
    closed = False  # whether a group with an unbounded repetition has just been closed
    position, in_class = 0, 0
    while position < len(expression):
        character = expression[position]
        unbounded = character in "*+" or (character == "{" and "," in expression[position : position + 12])
        if character == "\\":
            position += 1
        elif in_class:
            in_class += (character == "[") - (character == "]")
        elif character == "[":
            in_class = 1
        elif character == "(":
            repeats.append(False)
        elif character == ")" and len(repeats) > 1:
            closed = repeats.pop()
            repeats[-1] |= closed
            position += 1
            continue
        elif unbounded:
            if closed:
                return True
            repeats[-1] = True
        closed = False
        position += 1
    return False


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
