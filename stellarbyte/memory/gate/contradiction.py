"""Replaces an entry that a text contradicts; the old text goes into the entry's history."""

import re
from collections.abc import Sequence

from stellarbyte.memory.gate.frames import MANY, Frame, clauses_in, frames_of, same_value
from stellarbyte.memory.gate.rule import Candidate, Surroundings, Verdict
from stellarbyte.memory.words import content_of, negations_in, plain, tokens_of

# Words with which a text says itself that it corrects another.
_CORRECTION = re.compile(
    r"\b(?:actually|now|no longer|not .+ but|instead|anymore|any more|changed|moved|switched|correction|used to|"
    r"from now on|new|updated|rescheduled|postponed|"
    r"renamed)\b|其实|现在|不再|不是.+(?:而)?是|改|换|搬|更正|说错"
)
_FILLER = frozenset(
    ["actually", "now", "currently", "no", "wait", "sorry", "instead", "anymore", "correction", "oops", "new", "just"]
)
_FILLER_CHINESE = re.compile("其实|现在|实际上|目前|如今|已经|更正|不对|说错了|改成|改到|改为|换成|变成|[了新]")
_DAY = re.compile(
    r"(?:mon|tues|wednes|thurs|fri|satur|sun)day|january|february|march|april|may|june|july|august|september|"
    r"october|november|december|noon|midnight|"
    r"morning|afternoon|evening|spring|summer|autumn|winter|today|tomorrow|(?:周|星期|礼拜)[一二三四五六日天]"
)
_COLOUR = frozenset(
    [
        "red",
        "blue",
        "green",
        "yellow",
        "black",
        "white",
        "brown",
        "grey",
        "gray",
        "orange",
        "purple",
        "pink",
        "silver",
        "gold",
        "beige",
    ]
)
_NUMBER = re.compile(
    r"\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|once|twice)\b|[\d〇零一二三四五六七八九十百千万两]"
)
_CLASS_SIGNS = "色年月日号点岁市省县区路街楼层元块米斤周天司店校院"
# What stands between a subject and its value.
_LINKS = frozenset(
    [
        "is",
        "are",
        "was",
        "were",
        "am",
        "has",
        "have",
        "had",
        "at",
        "on",
        "in",
        "to",
        "by",
        "from",
        "with",
        "for",
        "until",
        "till",
        "under",
        "as",
        "uses",
        "plays",
        "takes",
        "eats",
        "drinks",
        "是",
        "在",
        "有",
        "到",
        "叫",
        "于",
        "用",
        "每",
        "吃",
        "喝",
        "会",
    ]
)
# The most words that a value has, and the share of the other words that two texts must have in common.
_LONGEST_VALUE = 6
_LEAST_COMMON = 0.5


def replace_contradicted(candidate: Candidate, around: Surroundings) -> Verdict | None:
    """Two texts contradict each other if they say different things in a respect in which only one can be true.

    Such respects are the frames of frames.py. Beside these, texts that differ in one span alone contradict each other
    if that is a number, a day, a name or a colour in both, or if the new text says that it corrects something.
    """
    if candidate.kind == "passage":
        return None
    frames = frames_of(candidate.text)
    framed = [entry for entry in around.same_frame if contradicts(frames, frames_of(entry.text))]
    if framed:
        changed = _with_new_value(candidate.text, frames, framed[0].text) if len(framed) == 1 else None
        return Verdict("replaced", "it says otherwise of the same", {}, tuple(framed), changed)
    for entry, cosine in around.neighbours:
        if entry.kind == "passage":
            continue
        common = _common_of_other_value(candidate.text, entry.text)
        if common is not None:
            scores = {"common": common} | ({} if cosine is None else {"cosine": cosine})
            return Verdict("replaced", "it differs in one value", scores, (entry,))
    return None


def contradicts(new: Sequence[Frame], old: Sequence[Frame]) -> bool:
    """Whether a frame of the new text says otherwise than the old one of the same key, or denies it."""
    for frame in new:
        for known in old:
            if not frame.is_of(known) or known.denied or known.relation in MANY:
                continue
            same = same_value(frame.value, known.value)
            if frame.denied if same else not frame.denied:
                return True
    return False


def _with_new_value(text: str, frames: Sequence[Frame], known: str) -> str | None:
    """The entry's text with another value, if it says more, which would be lost otherwise; None: it does not."""
    if clauses_in(known) < 2 or len(frames) != 1 or clauses_in(text) != 1:
        return None
    value = re.search(re.escape(frames[0].value), text, re.IGNORECASE)
    old = next((frame for frame in frames_of(known) if contradicts(frames, [frame])), None)
    if value is None or old is None:
        return None
    changed, count = re.subn(re.escape(old.value), lambda _: value[0], known, flags=re.IGNORECASE)
    return changed if count == 1 else None


def _common_of_other_value(text: str, known: str) -> float | None:
    """The share of words outside the one span in which two texts differ; None: it is no such difference."""
    new, old = _words(text), _words(known)
    first = 0
    while first < min(len(new), len(old)) and new[first] == old[first]:
        first += 1
    last = 0
    while last < min(len(new), len(old)) - first and new[-1 - last] == old[-1 - last]:
        last += 1
    value, other = new[first : len(new) - last], old[first : len(old) - last]
    common = new[:first] + new[len(new) - last :]
    if not value or not other or max(len(value), len(other)) > _LONGEST_VALUE or negations_in(value + other):
        return None
    said = content_of(" ".join(common))
    share = len(common) / max(len(new), len(old))
    if not said or first == 0 or share < _LEAST_COMMON:
        return None
    before, ends = new[:first], last == 0
    if not (_LINKS & set(before) or before[0] in ("i", "we", "我")):
        return None  # they differ in what they are about
    if _LINKS & {*value, *other}:
        return None  # or in what they say of it
    kinds = kinds_of(value, text) & kinds_of(other, known)
    corrects = _CORRECTION.search(plain(text)) is not None
    return share if kinds - {"name"} or (ends and (corrects or kinds)) else None


def _words(text: str) -> list[str]:
    return [word for word in tokens_of(_FILLER_CHINESE.sub("", text)) if word not in _FILLER]


def kinds_of(words: Sequence[str], text: str) -> set[str]:
    """What kinds of value the words of a span of `text` are: number, day, colour, name, or a sign that ends it."""
    joined = "".join(words) if any(len(word) == 1 and word >= "\u4e00" for word in words) else " ".join(words)
    found = {"number"} if _NUMBER.search(joined) else set()
    if _DAY.search(joined):
        found.add("day")
    if _COLOUR & set(words):
        found.add("colour")
    if all(re.search(rf"(?<![.!?] )(?<!^)\b{re.escape(word.capitalize())}", text) for word in words if word.isalpha()):
        found.add("name")
    return found | ({joined[-1]} & set(_CLASS_SIGNS) if joined else set())
