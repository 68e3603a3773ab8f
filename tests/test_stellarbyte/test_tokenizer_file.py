"""A tokenizer.json of a stranger is refused before the library takes memory, time or the process for it."""

import copy
import json
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from stellarbyte.errors import UserError
from stellarbyte.tokenizer_file import check_tokenizer, works


def sound() -> dict[str, Any]:
    vocabulary = {"<s>": 0, "a": 1, "b": 2, "ab": 3}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(tokenizers.Regex(r"[^\s\p{L}]?\p{L}+|\s+(?!\S)|(?:'s|'t)?"), "isolated")]
    )
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["<s>"])
    return json.loads(backend.to_str())


def replacing(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


ANY = {"Regex": "."}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "there is no model in it"),
    "a number beyond memory": ({"model.vocab.z": 2**32 - 1}, "has the number 4294967295, expected 0 to 16777215"),
    "a negative number": ({"model.vocab.z": -1}, "has the number -1"),
    "no number": ({"model.vocab.z": True}, "has the number true"),
    "a number twice": ({"model.vocab.z": 1}, "gives one number to two tokens"),
    "added tokens of nothing": ({"added_tokens": [{"id": 0, "content": ""}]}, "has the content ''"),
    "added tokens without an end": ({"added_tokens": [{"id": 0, "content": "x" * 5000}]}, "expected 1 to 4096"),
    "added tokens of no number": ({"added_tokens": [{"id": None, "content": "x"}]}, "has the id null"),
    "added tokens that are none": ({"added_tokens": ["x"]}, "expected a list of objects"),
    "a prefix that is not there": ({"model.continuing_subword_prefix": "##"}, "lacks the continuing_subword_prefix"),
    "a template of unknown tokens": (
        {"post_processor": {"single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "special_tokens": {}}},
        "names the special token 'x', which its special_tokens lack",
    ),
    "growth by one step": ({"normalizer": replacing(ANY, "x" * 5000)}, "expected a text of at most 1000 characters"),
    "growth by many steps": (
        {"normalizer": {"type": "Sequence", "normalizers": [replacing(ANY, "x" * 10)] * 4}},
        "more than 1000 times as long",
    ),
    "a long beginning": ({"normalizer": {"type": "Prepend", "prepend": "x" * 2000}}, "at most 1000 characters"),
    "replacing nothing": ({"normalizer": replacing({"String": ""}, "x")}, "replaces the empty text"),
    "repeated repetitions": ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"(?:\w+\s?)*!"}}}, "for ever"),
    "deeper ones": ({"decoder": replacing({"Regex": "((a{1,})b)+"}, "")}, "a repetition of repetitions"),
    "a long expression": ({"pre_tokenizer": {"pattern": {"Regex": "a" * 20_000}}}, "an expression of 20000 characters"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_stranger_s_tokenizer_is_refused(name: str) -> None:
    changes, sentence = HOSTILE[name]
    content = sound()
    check_tokenizer(copy.deepcopy(content), "x.json")
    for path, value in changes.items():
        *above, last = path.split(".")
        inner = content
        for key in above:
            inner = inner[key]
        inner[last] = value
    with pytest.raises(UserError, match=r"x\.json is not a tokenizer that can be used: ") as refused:
        check_tokenizer(content, "x.json")
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("expression", [r"(?i:'s|'t)?|(?<!,) ?[^\s\p{L}]+[\r\n]*", r"[(+]+)*", r"\(\+\)+", "(ab){2}+"])
def test_what_only_looks_like_repeated_repetitions(expression: str) -> None:
    content = sound() | {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": expression}}}
    check_tokenizer(content, "x.json")


@pytest.mark.parametrize("kind", [models.Unigram, models.WordPiece, models.WordLevel])
def test_other_models_are_none_of_our_business(kind: Any) -> None:
    check_tokenizer(json.loads(tokenizers.Tokenizer(kind()).to_str()), "x.json")


def test_what_the_library_raises_is_said_of_the_tokenizer(capfd: pytest.CaptureFixture[str]) -> None:
    content = sound()
    content["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(x+x+)+y"},
        "behavior": "Isolated",
        "invert": False,
    }
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    with pytest.raises(UserError, match=r"the tokenizer t fails on a text: Onig: Regex search error"), works("t"):
        backend.encode("x" * 100)
    capfd.readouterr()  # what Rust says of it
    with pytest.raises(KeyError), works("t"):
        raise KeyError("ours")
    with pytest.raises(KeyboardInterrupt), works("t"):
        raise KeyboardInterrupt
