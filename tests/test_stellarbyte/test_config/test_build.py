import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from stellarbyte.config.build import build
from stellarbyte.config.nodes import Node, parse_yaml
from stellarbyte.config.overrides import override, parse_overrides
from stellarbyte.config.plain import differing_fields, plain
from stellarbyte.errors import UserError


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    path: str
    rate: float | None = 1.0

    def __post_init__(self) -> None:
        if not self.path:
            raise UserError("path is empty: name a folder")


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=lambda: Inner("x"))
    count: int = 1
    flag: bool = False
    kind: Literal["no", "epoch"] = "no"
    colour: Colour | str = Colour.RED
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layers: str | tuple[int, ...] | None = None
    anything: dict[str, Any] = field(default_factory=dict)


def load(text: str, *words: str) -> Outer:
    root = parse_yaml(text, "f") or Node({}, "f")
    for name, value in parse_overrides(words):
        root = override(root, name, value)
    return build(Outer, root)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inner: {path: y, rate: 3}", Outer(Inner("y", 3.0))),
        ("inner: {path: y, rate: null}", Outer(Inner("y", None))),
        ("flag: yes", Outer(flag=True)),
        ("flag: Off", Outer(flag=False)),
        ("kind: no", Outer(kind="no")),
        ("count: 010", Outer(count=10)),
        ("rules: {a: [b, c]}", Outer(rules={"a": ("b", "c")})),
        ("layers: 0-3", Outer(layers="0-3")),
        ("layers: [0, 3]", Outer(layers=(0, 3))),
        ("anything: {a: {b: [1]}}", Outer(anything={"a": {"b": [1]}})),
        ("anything:", Outer()),
    ],
)
def test_values(text: str, expected: Outer) -> None:
    assert load(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("count: 1:30", "f:1: count is '1:30', expected an integer"),
        ("count: 2026-01-01", "f:1: count is '2026-01-01', expected an integer"),
        ("count: 1.0", "f:1: count is 1.0, expected an integer"),
        ("count: true", "f:1: count is true, expected an integer"),
        (f"count: {10**19}", "f:1: count is 10000000000000000000, which no integer of 64 bits holds"),
        ("count: null", "f:1: count is null, expected an integer"),
        ("flag: 1", "f:1: flag is 1, expected true or false"),
        ("kind: ep", "f:1: kind is 'ep', expected one of no, epoch"),
        ("kind: epoc", "did you mean epoch?"),
        ("inner: {path: y, rate: 1e999}", "f:1: inner.rate is inf, expected a finite number"),
        ("inner: {path: y, rate: .nan}", "f:1: inner.rate is nan, expected a finite number"),
        (f"inner: {{path: y, rate: {10**400}}}", "expected a finite number"),
        ("inner: {path: ''}", "f:1: inner.path is empty: name a folder"),
        ("inner: {}", "f:1: inner.path is missing and must be given"),
        (r'inner: {path: "a\0b"}', "f:1: inner.path is 'a\\x00b', which holds a NUL character"),
        (r'inner: {path: "\ud800"}', "f:1: inner.path is '\\ud800', which is not UTF-8 text"),
        ("inner: {path: 2026}", "f:1: inner.path is 2026, expected a string (quote it)"),
        ("path: x", "f:1: path is not a field; did you mean inner.path?"),
        ("rules: {a: b}", "f:1: rules.a is 'b', expected a list"),
        ("layers: {a: 1}", "f:1: layers is a mapping, expected a list or a string"),
        (f"{'x' * 900}: 1", "is not a field; the fields here are inner, count"),
        (f"count: {'x' * 5000}", "expected an integer"),
    ],
)
def test_mistakes(text: str, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        load(text)
    assert complaint in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--inner.path", "2026"], Outer(Inner("2026"))),
        (["--inner.path", "'2026'"], Outer(Inner("2026"))),
        (["--inner.path", "{a}: {b}"], Outer(Inner("{a}: {b}"))),
        (["--inner.path", "!!timestamp x"], Outer(Inner("!!timestamp x"))),
        (["--inner.path="], None),
        (["--count", "010"], Outer(count=10)),
        (["--flag", "yes"], Outer(flag=True)),
        (["--rules.a", "[b]"], Outer(rules={"a": ("b",)})),
        (["--layers", "3"], Outer(layers="3")),
        (["--inner.path", "a=b"], Outer(Inner("a=b"))),
    ],
)
def test_overrides(words: list[str], expected: Outer | None) -> None:
    if expected is None:
        with pytest.raises(UserError):
            load("", *words)
    else:
        assert load("", *words) == expected


@pytest.mark.parametrize(
    "value", ["!!timestamp x", "[" * 5000, "&a [*a]", "9" * 9000, "\udcff", "x" * 100_000, "{a: {b: {c: d}}}", "\0"]
)
def test_hostile_overrides_are_one_sentence(value: str) -> None:
    for field_name in ("count", "inner.rate", "flag", "rules", "kind"):
        with pytest.raises(UserError) as error:
            load("", f"--{field_name}", value)
        assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_differing_fields_go_into_sections_and_lists() -> None:
    assert differing_fields(load("count: 2"), load("inner: {path: y}")) == [("inner.path", "x", "y"), ("count", 2, 1)]
    assert differing_fields({"a": [{"b": 1}]}, {"a": [{"b": 2}]}) == [("a.0.b", 1, 2)]
    assert plain(load("rules: {a: [b]}"))["rules"] == {"a": ["b"]}
