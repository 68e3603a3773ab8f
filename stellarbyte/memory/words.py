"""Cuts texts into the terms that they are found by: stems of words, and single characters and pairs of Chinese."""

import re
import unicodedata
from collections.abc import Iterable, Iterator

from stellarbyte.memory.stop_words import STOP_CHARACTERS, STOP_WORDS

# Raised when the terms of a text change: a store with other terms is indexed anew when it is opened.
WORDS_VERSION = 1

# Scripts that write no spaces between words, or glue particles to them: Han, kana, Hangul, Thai, Lao, Khmer, Myanmar.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_TOKEN = re.compile(
    rf"([{_UNSPACED}]+)|(\d+(?:[.,:/-]\d+)*)|((?:(?![{_UNSPACED}])[^\W\d_])[^\W_{_UNSPACED}]*(?:'[^\W\d_]+)?)"
)
_UNSPACED_SIGN = re.compile(f"[{_UNSPACED}]")
# Latin's, Greek's and Cyrillic's; other scripts' marks are letters.
_ACCENTS = re.compile("[\u0300-\u036f]")
_NOT = re.compile(r"(?:n't|cannot)$")
_NEGATIONS = frozenset(("not", "no", "never", "without", "nor", "不", "没", "沒", "别", "無", "无", "未", "非", "勿"))
_VOWEL = re.compile("[aeiouy]")


def terms_of(text: str) -> list[str]:
    """The terms of a text in their order, without stop words; of a text of nothing else, all of them."""
    pieces = list(_pieces(text))
    return [term for term, is_stop in pieces if not is_stop] or [term for term, _ in pieces]


def is_pair(term: str) -> bool:
    """Whether a term is two characters of a script without spaces, which are no word perhaps."""
    return len(term) == 2 and _UNSPACED_SIGN.match(term) is not None


def plain(text: str) -> str:
    """The text without differences of width, case and accents, and with single spaces."""
    bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", text).casefold().replace("\u2019", "'"))
    return " ".join(unicodedata.normalize("NFC", bare).split())


def tokens_of(text: str) -> list[str]:
    """The words of a text as they are written but for case and accents; a Chinese character is a word."""
    found: list[str] = []
    for unspaced, number, word in _TOKEN.findall(plain(text)):
        found += unspaced or [number or word]
    return found


def content_of(text: str) -> list[str]:
    """The stems of a text in their order, without stop words; a Chinese character is a word."""
    return [term for term, is_stop in _pieces(text, pairs=False) if not is_stop]


def negations_in(words: Iterable[str]) -> set[str]:
    """Those of a text's stems that deny what it says."""
    return {"not" if word in _NEGATIONS else "" for word in words} - {""}


def values_of(text: str) -> set[str]:
    """The numbers of a text, and the words that are capitalised though no sentence begins with them."""
    names = re.findall(r"(?<![.!?。])(?<!^)[\s(\"'“‘]([A-ZÀ-ÖØ-Þ]\w*)", text)
    return {plain(name) for name in names if plain(name) not in STOP_WORDS} | set(re.findall(r"\d+", plain(text)))


def language_of(text: str) -> str:
    """An ISO 639-1 code as far as script and common words tell it, otherwise "und"."""
    if re.search("[\u3040-\u30ff]", text):
        return "ja"
    if re.search("[\uac00-\ud7af]", text):
        return "ko"
    if re.search("[\u3400-\u4dbf\u4e00-\u9fff]", text):
        return "zh"
    words = re.findall(r"[a-z']+", text.casefold())
    return "en" if any(word in STOP_WORDS for word in words) else "und"


def stem(word: str) -> str:
    """The word without the common endings of English: plural and possessive s, -ed and -ing; others stay."""
    word = word.removesuffix("'s")
    if not word.isascii() or len(word) < 4:
        return word
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith(("sses", "shes", "ches", "xes", "zes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        root = word.removesuffix(ending)
        if root != word and len(root) > 2 and _VOWEL.search(root):
            word = root[:-1] if root[-1] == root[-2] and root[-1] not in "lsz" else root
            break
    return word.removesuffix("e") if len(word) > 3 else word


def _pieces(text: str, *, pairs: bool = True) -> Iterator[tuple[str, bool]]:
    """Each term, and whether it is a stop word."""
    for unspaced, number, word in _TOKEN.findall(plain(text)):
        if number:
            yield number, False
        elif word:
            negated = _NOT.sub("", word)
            if negated != word:
                yield "not", False
            elif word in STOP_WORDS:
                yield word, True
            else:
                yield stem(word), False
        else:
            stops = [character in STOP_CHARACTERS for character in unspaced]
            yield from zip(unspaced, stops, strict=True)
            for first in range(len(unspaced) - 1 if pairs else 0):
                yield unspaced[first : first + 2], stops[first] or stops[first + 1]
