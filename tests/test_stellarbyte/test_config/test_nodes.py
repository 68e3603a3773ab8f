from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stellarbyte.config.nodes import MOST_DEPTH, is_word, parse_yaml, read_yaml
from stellarbyte.config.plain import plain
from stellarbyte.errors import UserError


def read(text: str) -> object:
    return plain(parse_yaml(text, "f"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("3e-4", 3e-4),
        ("1.0e5", 1e5),
        ("-1.5", -1.5),
        (".5", 0.5),
        ("5.", 5.0),
        (".inf", float("inf")),
        ("-.Inf", float("-inf")),
        ("1e999", float("inf")),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("on", "on"),
        ("~", None),
        ("null", None),
        ("'010'", "010"),
        ('"true"', "true"),
        ("1.2.3", "1.2.3"),
        ("-", [None]),
        ("+", "+"),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = read(text)
    assert found == value and type(found) is type(value)


@given(st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none() | st.text())
def test_what_pyyaml_writes_is_read(value: object) -> None:
    text = yaml.safe_dump([value], allow_unicode=False)
    if isinstance(value, str) and not is_word(value) and f"- {value}\n" == text:
        return  # written bare, as 3e-4 is no number in YAML 1.1
    assert read(text) == [value]


HOSTILE = {
    "lists": "[" * 100_000,
    "mappings": "{a: " * 100_000,
    "blocks": "\n".join("  " * depth + "a:" for depth in range(3000)),
    "a level too deep": "[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1),
    "anchors": "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    + "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "itself": "a: &a [*a]",
    "itself as a mapping": "a: &a {b: *a}",
    "timestamp": "a: !!timestamp x",
    "bool": "a: !!bool x",
    "int": "a: !!int x",
    "float": "a: !!float x",
    "binary": "a: !!binary x",
    "set": "a: !!set {x}",
    "omap": "a: !!omap [x]",
    "object": "a: !!python/object:os.system x",
    "name": "a: !!python/name:os.system",
    "own": "a: !x y",
    "digits": f"a: {'9' * 20_000}",
    "hexadecimal digits": f"a: 0x{'f' * 20_000}",
    "values": "a: [" + "1," * 30_000 + "]",
    "list as a key": "? [a]\n: 1",
    "twice": "a: 1\na: 2",
    "no end": "a: [",
    "tab": "a:\n\t- b",
    "no anchor": "a: *b",
    "two documents": "a: 1\n---\nb: 2",
    "control characters": "a: \x07",
    "directive": "%YAML 9.9\n---\na: 1",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_yaml(text, "f")
    sentence = str(error.value)
    assert sentence.startswith("f")
    assert "\n" not in sentence and len(sentence) < 250


def test_too_many_values_are_not_even_composed() -> None:
    """Of what a file holds in one MiB, PyYAML makes a node a kilobyte, at half a million in half a minute."""
    with pytest.raises(UserError, match=r"f:40000: the file stands for more than 20000 values$"):
        parse_yaml("a:\n" + "- 1\n" * 100_000, "f")


def test_the_bounds_are_named() -> None:
    for name, bound in (
        ("lists", "deeper than 40 levels"),
        ("anchors", "more than 20000 values"),
        ("digits", "20000 digits"),
        ("timestamp", "without a tag"),
    ):
        with pytest.raises(UserError, match=bound):
            parse_yaml(HOSTILE[name], "f")


def test_aliases_and_line_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("a: &x\n  b: 1\nc: *x\n")
    root = read_yaml(tmp_path / "c.yaml")
    assert plain(root) == {"a": {"b": 1}, "c": {"b": 1}}
    assert root.value["c"].where == f"{tmp_path}/c.yaml:3"
    assert root.value["a"].value["b"].where == f"{tmp_path}/c.yaml:2"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"- x", "c.yaml:1: the file is a list, expected fields and their values"),
        (b"word", "c.yaml:1: the file is 'word', expected fields"),
        (b"a: \xff", "c.yaml is not UTF-8 text (byte 3)"),
        (b"#" * (2 << 20), "c.yaml is larger than 1 MiB"),
        (b"\0" * 10, "c.yaml: is not valid YAML"),
    ],
    ids=["list", "word", "latin-1", "large", "NUL"],
)
def test_files_that_are_no_configs(content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_yaml(tmp_path / "c.yaml")
    assert str(error.value).startswith(f"{tmp_path}/{complaint}")


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    for text in ("", "# only a comment\n", "\ufeff"):
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        assert read_yaml(tmp_path / "c.yaml").value == {}
