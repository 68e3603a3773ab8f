"""The words of a report's page and pictures, by language."""

import re
from functools import cache

from stellarbyte.report.quantities import Lang
from stellarbyte.report.words import chinese, chinese_measured, chinese_sentences, english, english_measured

TABLES = {
    "en": english.WORDS | english_measured.WORDS,
    "zh": chinese.WORDS | chinese_measured.WORDS,
}
_HOLE = re.compile(r"\{(\w+)\}")


class Words:
    """The words of one language, by their keys."""

    def __init__(self, lang: Lang) -> None:
        self.lang = lang
        self._table = TABLES[lang]

    def __call__(self, key: str, /, **values: str | int) -> str:
        """The text of a key, with values for its holes."""
        return self._table[key].format(**values)

    def of(self, group: str, name: str) -> str:
        """The word for a name of a group, such as a part of the model; a name that is not in the table as it is."""
        return self._table.get(f"{group}.{name}", name)

    def sentence(self, text: str) -> str:
        """A sentence of the report in this language; one that is not in the table stays as it is."""
        if self.lang == "en":
            return text
        for pattern, translated in _patterns():
            if found := pattern.fullmatch(text):
                return translated.format(**{hole: _fragment(text) for hole, text in found.groupdict().items()})
        return text

    def remark(self, text: str) -> str:
        """A sentence as it stands by itself: with a capital, unless it begins with a name, and a full stop."""
        translated = self.sentence(text)
        first = translated.partition(" ")[0]
        if first.isalpha() and first.isascii() and first.islower():
            translated = translated[:1].upper() + translated[1:]
        return translated if translated.endswith((".", "。")) else translated + {"en": ".", "zh": "。"}[self.lang]


def _fragment(text: str) -> str:
    for pattern, translated in chinese_sentences.FRAGMENTS:
        text = re.sub(pattern, translated, text)
    return text


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """Each English sentence as a pattern whose holes are groups, with its translation."""
    patterns = []
    for sentence, translated in chinese_sentences.SENTENCES.items():
        parts = _HOLE.split(sentence)
        text = "".join(re.escape(part) if n % 2 == 0 else f"(?P<{part}>.+?)" for n, part in enumerate(parts))
        patterns.append((re.compile(text, re.DOTALL), translated))
    return patterns
