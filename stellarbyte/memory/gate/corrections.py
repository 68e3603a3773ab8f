"""Completes corrections that say a value alone, such as "no, it's Max", by the statement that they correct."""

import re
from collections.abc import Sequence

from stellarbyte.memory.gate.contradiction import kinds_of
from stellarbyte.memory.gate.frames import frames_of
from stellarbyte.memory.words import tokens_of

_OPENING = (
    r"(?:(?:no|nope|nah|wait|sorry|oops|actually|correction|hold on|i was wrong|my mistake|i mean|i meant|that's wrong|"
    r"not quite)\b[,.:;!]*\s+)+"
)
_IT_IS = (
    r"(?:(?:it|he|she|that|they|(?:the|her|his|its) [a-z]+)(?:'?s| is| was|'re| are| should be)"
    r"(?: called| named| on| in| at)?|make (?:it|that)|i meant?)"
)
_VALUE, _OLD = (rf"(?P<{name}>(?:[^,;.!?]|[.](?=\w))+?)" for name in ("value", "old"))
_ENGLISH = re.compile(
    rf"(?:{_OPENING}(?:{_IT_IS} )?|i meant? ){_VALUE}(?:,? not {_OLD})?(?:,? sorry)?[.!]*",
    re.IGNORECASE,
)
_NOT_BUT = re.compile(
    rf"(?:{_OPENING})?(?:{_IT_IS} )?not {_OLD}(?:, but|,| but) (?:{_IT_IS} )?{_VALUE}[.!]*",
    re.IGNORECASE,
)
_BUT_NOT = re.compile(rf"{_IT_IS} {_VALUE},? not {_OLD}[.!]*", re.IGNORECASE)
_CHINESE_OPENING = (
    r"(?:不对|不不|不|错了|说错了|我说错了|等等|等一下|其实|更正一下?|抱歉|对不起|应该|我是说)[，,。：: ]*"
)
_CHINESE = re.compile(
    rf"(?:{_CHINESE_OPENING})+(?:[它他她]?(?:应该)?(?P<verb>是|叫|在))?(?P<value>[^，,。！!？?是叫]+?)"
    r"(?:[，,]?(?:不是|不叫)(?P<old>[^，,。！!？?]+?))?[。！!]*"
)
_CHINESE_NOT_BUT = re.compile(
    rf"(?:{_CHINESE_OPENING})?(?:不是|不叫)(?P<old>[^，,。！!？?]+?)[，,]?(?:而)?(?:是|叫|应该是)"
    r"(?P<value>[^，,。！!？?]+?)[。！!]*"
)
# A value is short, and no sentence of its own.
_LONGEST, _LONGEST_VALUE, _MOST_WORDS = 120, 40, 5
_SENTENCE = re.compile(
    r"\b(?:i|i'm|we|you|he|she|they|is|are|was|were|have|has|had|do|does|did)\b|[我你]", re.IGNORECASE
)
_COUNT = re.compile(r"[\d〇零一二三四五六七八九十百千万两]+")


def completed(sentence: str, before: Sequence[str]) -> str | None:
    """The last of the sentences before that `sentence` corrects, with the new value; None: it corrects none.

    A value takes the place of one of its kind: a name, a number, a day or a colour; or of one that is named ("not
    blue"). Anything else, such as "no, it's fine", corrects nothing.
    """
    if len(sentence) > _LONGEST:
        return None
    patterns = (_NOT_BUT, _BUT_NOT, _ENGLISH, _CHINESE_NOT_BUT, _CHINESE)
    found = next((one for pattern in patterns if (one := pattern.fullmatch(sentence.strip()))), None)
    if found is None:
        return None
    value, old = found["value"].strip(), (found["old"] or "").strip()
    if len(value) > _LONGEST_VALUE or len(value.split()) > _MOST_WORDS or _SENTENCE.search(value):
        return None
    verb = found.groupdict().get("verb")
    for said in reversed(before):
        replaced = _replaced(said, old, value) if old else _of_its_kind(said, value, verb)
        if replaced is not None:
            return replaced
    return None


def _of_its_kind(said: str, value: str, verb: str | None) -> str | None:
    """The sentence with the value in place of the only one of its kind; None: there is none, or more than one."""
    kinds = _kinds(value)
    values = [frame.value for frame in frames_of(said) if frame.value]
    for frame in frames_of(said):
        at = re.search(re.escape(frame.value), said, re.IGNORECASE) if frame.value else None
        is_meant = kinds & _kinds(at[0]) if at else False
        if (is_meant and value.isascii()) or (verb == "叫" and frame.relation == "name"):
            return _replaced(said, frame.value, value)
    if not value.isascii():  # of a script without spaces the count alone is told apart, and what ends it
        counts, count = _COUNT.findall(said), _COUNT.match(value)
        if count and "月" in said and "月" in value:
            counts = re.findall(r"[\d〇一二三四五六七八九十]+月[\d〇一二三四五六七八九十]+", said)
            count = re.match(r"[\d〇一二三四五六七八九十]+月[\d〇一二三四五六七八九十]+", value)
        elif count and value[count.end() :] in ("日", "号"):
            counts = re.findall(r"[\d〇一二三四五六七八九十]+(?=[日号])", said)
        return _replaced(said, counts[0], count[0]) if count and len(counts) == 1 else None
    if values:
        return None
    words = [word for word in re.findall(r"\w+", said) if (kinds & _kinds(word)) - {"name"}]
    return _replaced(said, words[0], value) if len(words) == 1 else None


def _kinds(value: str) -> set[str]:
    """See kinds_of; a value that begins a text has a capital letter only if it is a name."""
    if "@" in value:
        return {"address"}
    return kinds_of(tokens_of(value), f"is {value}") if any(map(str.isalnum, value)) else set()


def _replaced(said: str, old: str, value: str) -> str | None:
    """The sentence with another value; None: it does not have the old one once."""
    whole = rf"(?<![A-Za-z0-9_]){re.escape(old)}(?![A-Za-z0-9_])" if old.isascii() else re.escape(old)
    changed, count = re.subn(whole, lambda _: value, said, flags=re.IGNORECASE)
    return changed if count == 1 else None
