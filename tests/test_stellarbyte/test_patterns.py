"""Expressions that are none, or would never end, are refused; those that people write pass."""

import re
import time

import pytest

from stellarbyte.errors import UserError
from stellarbyte.patterns import MAX_SECONDS, check_patterns

NAMES = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(40) for name in "qkvo"]


def check(*patterns: str) -> None:
    check_patterns({f"pattern[{i}]": (p, rf"(.*\.)?({p})$") for i, p in enumerate(patterns)}, NAMES)


def test_what_people_write_passes() -> None:
    check(
        "q_proj",
        r"^model\.layers\.0\.self_attn\.q_proj",
        r".*\.layers\.\d\.mlp\.(up|down)_proj",
        ".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
        r"(?!(?:(?!\d+\.)[^.]+\.)+(?:1|2)\.).*",
        # Unsloth's.
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|ffn|dense).*?(?:k_proj|v_proj|q_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:k_proj|v_proj|q_proj)))",
    )


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(", "pattern[0] '(' is no regular expression"),
        ("q_proj)", "is no regular expression"),
        ("*q", "is no regular expression"),
        ("(?P<a", "is no regular expression"),
        ("a{99999999999999999999}", "is no regular expression"),
        ("(" * 5000 + ")" * 5000, "is no regular expression: nested too deep"),
        ("a" * 10_001, "is an expression of 10001 characters, where 10000 are the most"),
        ("(?i)Q_PROJ", "is no regular expression: global flags not at the start"),
    ],
)
def test_what_is_none_is_refused(pattern: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        check(pattern)
    assert sentence in str(refused.value) and len(str(refused.value)) < 300


def test_too_many_are_refused_before_any_is_compiled() -> None:
    started = time.process_time()
    with pytest.raises(UserError, match=re.escape("pattern[0] is one of 100000 expressions, where 2000 are the most")):
        check(*(f"module{i}" for i in range(100_000)))
    assert time.process_time() - started < 1
    check(*(f"module{i}" for i in range(2000)))


@pytest.mark.parametrize("slow", [r"([\w.]+)+!"])
def test_what_would_never_end_is_refused_and_named(slow: str) -> None:
    started = time.process_time()
    with pytest.raises(UserError, match=re.escape(f"pattern[1] {slow!r} takes more than {MAX_SECONDS} second")):
        check("(q|k)+_proj", slow, "(v)+_proj")
    assert time.process_time() - started < MAX_SECONDS  # the trial is another process's


@pytest.mark.long
@pytest.mark.parametrize(
    "slow",
    ["(.|.)*!", r"([\w.]*)*!", r"(\w+\.?)+!", r"(a|b|.*)*x", r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)!", ".*" * 12 + "!"],
)
def test_more_that_would_never_end(slow: str) -> None:
    with pytest.raises(UserError, match="takes more than"):
        check(slow)
