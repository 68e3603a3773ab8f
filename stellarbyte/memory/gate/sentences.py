"""Cuts what a user says in a turn into sentences that can be remembered each alone."""

import re
from collections.abc import Sequence

from stellarbyte.memory.gate.corrections import completed
from stellarbyte.memory.gate.frames import frames_of

_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_END = re.compile(
    r"(?<=[。！？!?…])[\"'”’)\]]*(?=\s|[^\s\"'”’)\]])|(?<=[.])[\"'”’)\]]*\s+(?=[A-Z0-9\"'“‘\u4e00-\u9fff])|\n+"
)
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|etc|e\.g|i\.e|approx|[A-Z])\.$")
# A sentence that begins so means what the one before has named.
_LEANS = re.compile(
    r"^(?:and |but |so |also )?(?:he|she|it|they|him|her|his|their|its|that one|both)(?:'s|'re|'ll|'ve)?\b|^(?:他|她|"
    r"它|而且|并且|所以|但是)",
    re.IGNORECASE,
)
_ASKED = re.compile(
    r"^(?:please |pls |ok(?:ay)?,? |and |also |hey,? )*(?:remember|note|keep in mind|don't forget|never forget)"
    r"(?: that|,|:| -)*\s+(?=\S)|^(?:请|麻烦)?(?:你)?(?:记住|记下|记得|记一下|别忘了|不要忘记)[,，:：]?|"
    r"^(?:覚えておいて|覚えて|メモして)(?:ください|ね)?[、，,:： ]*(?=.)",
    re.IGNORECASE,
)
_LONGEST = 400
_POINTS = ".!?。！？"
# What says nothing of its own before a statement.
_OPENING = re.compile(
    r"^(?:(?:for the record|just so you know|fyi|by the way|btw|as (?:i|we) (?:said|told you|mentioned)(?: before|"
    r" already| earlier)?|as mentioned|like i said|you know|well|anyway|oh|ah|"
    r"hi|hey|hello|thanks|thank you|also|and|so)\b(?: that)?[,:!]\s*|(?:顺便(?:说一下|提一下|告诉你)|我说过|"
    r"我之前说过|如前所述|你知道|对了|另外|"
    r"嗯|哦|谢谢)[,，:：!！]\s*)+",
    re.IGNORECASE,
)


# Where a sentence corrects itself: "on Monday, no, Tuesday".
_SLIP = re.compile(r",\s*(?=(?:no|wait|sorry|actually|i mean|i meant)\b)|[，,](?=不对|不，|错了|说错了)", re.IGNORECASE)
_PRONOUN = re.compile(r"^(?:and |but |so |also )?(?:(he|she|it|they)|his|her|their|its)(?='s|\b)", re.IGNORECASE)
# Of what was said earlier, so many turns can be corrected.
_CORRECTED = 4


def sentences_of(turn: str, earlier: Sequence[str] = ()) -> list[tuple[str, bool]]:
    """Each sentence of a turn, without code, and whether the user has asked to remember it.

    A sentence such as "no, it's Max" becomes the one that it corrects, with the new value.

    earlier: the turns before, from the oldest.
    """
    said: list[str] = []
    for before in earlier[-_CORRECTED:]:
        said += [sentence for sentence, _ in _sentences(before, said)]
    return _sentences(turn, said)


def _sentences(turn: str, said: Sequence[str]) -> list[tuple[str, bool]]:
    found: list[tuple[str, bool]] = []
    for sentence in _cut(_CODE.sub("\n", turn)):
        before = [*said, *(one for one, _ in found)]
        corrected = completed(sentence, before)
        if corrected is None and not found and said and _leans_on(said[-1], sentence):
            corrected = f"{said[-1]}{'' if said[-1][-1] in _POINTS else '.'} {sentence}"
        if corrected is not None:
            found.append((corrected, False))
            continue
        slip = _SLIP.split(sentence, maxsplit=1)
        sentence = (completed(slip[1], slip[:1]) if len(slip) == 2 else None) or sentence
        rest = _OPENING.sub("", sentence) or sentence
        asked = _ASKED.match(rest)
        demanded = asked is not None
        rest = _OPENING.sub("", rest[asked.end() :]) or sentence if asked else rest
        if found and _LEANS.match(sentence) and len(found[-1][0]) < _LONGEST:
            found[-1] = (f"{found[-1][0]} {sentence}", found[-1][1])
        else:
            found.append((rest[:1].upper() + rest[1:], demanded))
    return found


def _leans_on(said: str, sentence: str) -> bool:
    """Whether a sentence says what only one thing can be true of, and says it of "she" or "its"."""
    named = _PRONOUN.sub(lambda found: "Somebody" if found[1] else "Somebody's", sentence)
    return named != sentence and len(said) < _LONGEST and bool(frames_of(named))


def _cut(text: str) -> list[str]:
    sentences: list[str] = []
    first = 0
    for end in _END.finditer(text):
        piece = text[first : end.end()].strip()
        if _ABBREVIATION.search(piece) and "\n" not in end[0]:
            continue
        sentences.append(piece)
        first = end.end()
    return [piece for piece in (*sentences, text[first:].strip()) if piece]
