"""Both languages have every word, with the same places for values, and the scripts ask for no other."""

import re

import pytest

from stellarbyte.watch.page import asset, page
from stellarbyte.watch.words import CHINESE, ENGLISH, language


def test_the_languages_say_the_same() -> None:
    assert list(ENGLISH) == list(CHINESE)
    for name, words in ENGLISH.items():
        assert sorted(re.findall(r"\{\w+\}", words)) == sorted(re.findall(r"\{\w+\}", CHINESE[name])), name


def test_every_word_is_used_and_there() -> None:
    scripts = asset("watch.js") + asset("charts.js")
    asked = set(re.findall(r"words\.(\w+)", scripts)) | set(re.findall(r'filled\("(\w+)"', scripts))
    asked |= set(re.findall(r'title: "(\w+)"', scripts)) | set(re.findall(r'/, "(kept_\w+)"', scripts))
    asked |= {word for found in re.findall(r'Word: "(\w+)"|\|\| "(\w+)"\]', scripts) for word in found}
    assert asked - {""} <= ENGLISH.keys()


@pytest.mark.parametrize(
    ("accepted", "lang"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,zh;q=0.9", "en"),
        ("zh;q=0.2, en;q=0.9", "en"),
        ("de, fr", "en"),
        (None, "en"),
        (";q=x,,zh", "zh"),
    ],
)
def test_the_browser_s_language(accepted: str | None, lang: str) -> None:
    assert language(accepted) == lang


def test_the_page_s_words_cannot_end_their_script() -> None:
    assert page("zh").count("</script>") == 4 and "正在观察" in page("zh") and 'lang="zh"' in page("zh")
