"""The patterns that cut texts into words, held against Transformers' and the tokenizers library's own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from stellarbyte_jax.data.documents import pieces
from stellarbyte_jax.data.pre_tokenizers import DEFAULT, PATTERNS, pre_tokenizer
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.data.tokenizer_training import train_tokenizer

from .conftest import TEXTS

SOME = "ab Z1²\n\r\t '.,床ー\u0301\u00a0"
TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(SOME)), max_size=80)


def words(pattern: str, text: str) -> list[str]:
    return [text[start:stop] for _, (start, stop) in pre_tokenizer(PATTERNS[pattern]).pre_tokenize_str(text)]


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2"])
def test_transformers_reads_the_same_pattern_under_the_name(name: str) -> None:
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    assert mapping.GGUF_PRE_TOKENIZER_SPLITS[name] == PATTERNS[name]


@given(text=TEXT)
def test_gpt_2s_pattern_is_that_of_the_library(text: str) -> None:
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str(text)
    assert pre_tokenizer(PATTERNS["gpt-2"]).pre_tokenize_str(text) == theirs


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=settings.default.max_examples // 4)
@given(text=TEXT, chars=st.integers(1, 20))
def test_a_long_text_is_cut_between_words(name: str, text: str, chars: int) -> None:
    places, at = set(), 0
    for word in words(name, text):
        at += len(word)
        places.add(at)
    cut = 0
    for piece in list(pieces([text], chars))[:-1]:
        cut += len(piece)
        before, after = text[cut - 1], text[cut]
        if (before == "\n" and after.isalnum()) or (before.isalnum() and after == " "):
            assert cut in places


@pytest.mark.parametrize("name", PATTERNS)
def test_each_trains_a_tokenizer_that_gives_texts_back(tmp_path, name: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 320, tmp_path, report=lambda _: None, pattern=name)
    assert Tokenizer.load(tmp_path).vocab_size == tokenizer.vocab_size
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("12345")) >= {"qwen2": 5, "gpt-2": 1}.get(name, 2)


def test_the_default_is_one_that_llama_cpp_knows() -> None:
    assert DEFAULT in PATTERNS
    assert DEFAULT != "stellarbyte"
