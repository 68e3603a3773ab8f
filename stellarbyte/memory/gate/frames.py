"""Reads of a sentence what it says of whom, in respects in which only one thing can be true at a time."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from stellarbyte.memory.gate import chinese_frames, english_frames, japanese_frames
from stellarbyte.memory.words import content_of, plain, stem, tokens_of


class Frame(NamedTuple):
    """One such statement.

    Attributes:
        subject: whom it is about: "i" for the user, "my dog", "anna".
        relation: the respect, such as "name" or "home".
        value: what it says, as plain text; may be empty of a denial.
        denied: whether it says that this is so no longer.
    """

    subject: str
    relation: str
    value: str
    denied: bool = False

    @property
    def key(self) -> str:
        """The end of the subject, which short and long names share, and the relation: what an index finds."""
        words = self.subject.split() or [""]
        return f"{words[-1][-2:] if _HAN.search(words[-1]) else words[-1]}|{self.relation}"

    def is_of(self, other: "Frame") -> bool:
        """Whether both are about the same subject and relation; "Lena" may be "my sister Lena", "my cat" only that."""
        if self.relation != other.relation:
            return False
        short, long = sorted((self.subject, other.subject), key=len)
        return short == long or (short.split()[:1] not in (["my"], ["i"], ["the"]) and long.endswith(short))


# Words of no weight that corrections have.
_FILLER = re.compile(
    r"\b(?:not any ?more|actually|now|currently|nowadays|these days|instead|already|recently|anymore|any more|"
    r"sorry|oops|wait|correction|no|well|by the way|btw|"
    r"just|from now on|as of (?:today|now)|since (?:last )?(?:week|month|year)|meanwhile|officially|"
    r"finally)\b(?! longer),?|其实|实际上|现在|目前|如今|最近|刚刚|已经|后来|更正一下?|不对|说错了|从现在起|从今天起"
)
_CLAUSES = re.compile(
    r"\s*(?:[,;，；。]|\.(?=\s|$)|\bbut\b|\band\b(?= (?:i|we|my|our|it|he|she|they|now)\b)|而是|但是|但)\s*"
)
_LONGEST = 500
# In these respects several things are true at a time: they tell duplicates, and nothing contradicts another.
MANY = frozenset(("allergy",))
_INSTEAD = re.compile(
    r"(?:(?:it|he|she|that|the right one|her name|his name|its name) is |is |[它他她]?(?:是|叫|在))?(?P<value>.+)"
)
_HAN = re.compile("[\u4e00-\u9fff]")
_KANA = re.compile("[\u3040-\u30ff]")
# A clause of the user that says nothing of that kind, such as "I changed jobs", before one that leaves out who.
_OF_THE_USER = re.compile(r"(?:i|我)(?!\w)|我(?!的|们的)")


def frames_of(text: str) -> list[Frame]:
    """The frames of a text, each once; a text of more than a few sentences has none."""
    if len(text) > _LONGEST:
        return []
    found: list[Frame] = []
    subject = ""
    for clause in _clauses(text):
        frames = list(_frames(clause))
        instead = _INSTEAD.fullmatch(clause)
        if not frames and found and found[-1].denied and instead:
            frames = [found[-1]._replace(value=_value(instead["value"]), denied=False)]
        if not frames and subject:  # "..., and work at Bosch", "…，在小米工作"
            frames = list(_frames(f"{subject} {clause}"))
        if frames:
            subject = {"i": "我" if _HAN.search(clause) else "i"}.get(frames[0].subject, subject)
        elif not subject and (opening := _OF_THE_USER.match(clause)):
            subject = opening[0]
        found += frames
    return list(dict.fromkeys(found))


def same_value(one: str, other: str) -> bool:
    """Whether the words of one value are all in the other: "Munich", and "Munich since May"; of Chinese, as a piece."""
    if _HAN.search(one + other):
        first, second = one.replace(" ", ""), other.replace(" ", "")
        return first in second or second in first
    words, others = (set(content_of(value) or tokens_of(value)) for value in (one, other))
    return words <= others or others <= words


def says_nothing_else(text: str) -> bool:
    """Whether each clause of a text is a frame, so that texts of the same frames say the same."""
    return 0 < len(frames_of(text)) == clauses_in(text)


def clauses_in(text: str) -> int:
    """The number of clauses of a text."""
    return len(list(_clauses(text)))


def _clauses(text: str) -> Iterator[str]:
    text = _FILLER.sub(" ", _contracted(plain(text)).strip(" .!。！"))
    yield from (clause.strip(" .:!?\"'“”‘’") for clause in _CLAUSES.split(text) if clause.strip(" .!?"))


def _contracted(text: str) -> str:
    for short, whole in (
        ("won't", "will not"),
        ("can't", "can not"),
        ("n't", " not"),
        ("i'm", "i am"),
        ("'re", " are"),
        ("'ve", " have"),
    ):
        text = text.replace(short, whole)
    return re.sub(r"\b(he|she|it|that)'s\b", r"\1 is", text)


def _frames(clause: str) -> Iterator[Frame]:
    plain_clause = " ".join(
        re.sub(rf"\b(?:{english_frames.DENIED})\b", lambda no: "is" if no[0] == "is not" else "", clause).split()
    )
    denied = plain_clause != " ".join(clause.split())
    possessed = english_frames.POSSESSED.fullmatch(plain_clause) or english_frames.CHANGED.fullmatch(plain_clause)
    if possessed:
        relation = possessed["relation"].strip()
        yield Frame(_owner(possessed["subject"]), _relation(relation), _value(possessed["value"]), denied)
        return
    for relation, pattern in english_frames.PATTERNS:
        found = pattern.fullmatch(plain_clause)
        if found and not found["subject"].startswith(("what", "who", "where", "how")):
            left = found.groupdict().get("left")
            yield Frame(
                _subject(found["subject"]), relation, _value(left or found["value"]), denied or left is not None
            )
            return
    yield from _japanese_frames(clause) if _KANA.search(clause) else _chinese_frames(clause)


def _japanese_frames(clause: str) -> Iterator[Frame]:
    clause = japanese_frames.FILLER.sub("", clause.replace(" ", ""))
    possessed = japanese_frames.POSSESSED.fullmatch(clause)
    if possessed:
        relation = possessed["relation"]
        relation = japanese_frames.RELATIONS.get(relation, relation.removeprefix("一番"))
        yield Frame(_japanese_subject(possessed["subject"]), relation, possessed["value"])
        return
    for relation, pattern in japanese_frames.PATTERNS:
        if found := pattern.fullmatch(clause):
            yield Frame(_japanese_subject(found["subject"] or "私"), relation, found["value"])
            return


def _chinese_frames(clause: str) -> Iterator[Frame]:
    clause = clause.replace(" ", "")
    bare = re.sub(r"已经不|没有?再|不再|不(?=[叫住在是])", "", clause)
    bare = re.sub(r"^(我[^,，]{0,8}?)(?=叫|住|在)", r"\1", bare)
    denied = bool(chinese_frames.DENIED.search(clause)) and bare != clause
    possessed = chinese_frames.POSSESSED.fullmatch(bare)
    if possessed:
        relation = possessed["relation"]
        yield Frame(
            _chinese_subject(possessed["subject"]),
            chinese_frames.RELATIONS.get(relation, relation),
            _value(possessed["value"]),
            denied,
        )
        return
    for relation, pattern in chinese_frames.PATTERNS:
        found = pattern.fullmatch(bare)
        if found:
            left = found.groupdict().get("left")
            yield Frame(
                _chinese_subject(found["subject"]), relation, _value(left or found["value"]), denied or left is not None
            )
            return


def _relation(words: str) -> str:
    stems = _stems(words.replace("favorite", "favourite").replace("color", "colour"))
    return english_frames.RELATIONS.get(words) or english_frames.RELATIONS.get(stems) or stems


def _subject(words: str) -> str:
    return {"we": "i", "me": "i"}.get(words, _stems(words))


def _owner(words: str) -> str:
    """Whose it is: my is the user's."""
    return {"my": "i", "our": "i", "the": "the"}.get(words, _stems(words.removesuffix("'s").removesuffix("'")))


def _chinese_subject(words: str) -> str:
    words = re.sub(r"^(我们?)(?:家)?(?:的)?(?:那|这)?(?:只|条|个|位)?", "我 ", words.strip()).strip().removesuffix("的")
    return "i" if words == "我" else words.replace("我 ", "my ")


def _japanese_subject(words: str) -> str:
    owner, of, owned = words.partition("の")
    if owner in japanese_frames.MINE:
        return f"my {owned}" if of else "i"
    return words


def _stems(words: str) -> str:
    return " ".join(stem(word) for word in words.split())


def _value(words: str) -> str:
    return re.sub(
        r"^(?:the|a|an|at|in|on|to)\s+|(?:\s*(?:now|anymore)|了)$", "", words.strip(" .!?。！\"'“”‘’")
    ).strip()
