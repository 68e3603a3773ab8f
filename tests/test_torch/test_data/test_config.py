from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stellarbyte.config.build import build
from stellarbyte.config.nodes import read_yaml
from stellarbyte.errors import UserError
from stellarbyte_torch.data.config import DataConfig, SourceConfig

FULL = """\
sources:
  - path: a.jsonl
  - {path: b, format: alpaca}
tokenizer: tok
chat_template: stellarbyte
sequence_length: 64
on_too_long: split
packing: true
loss_on: all
validation_fraction: 1e-1
on_bad_record: skip
seed: 3
"""


def load(text: str, tmp_path: Path) -> DataConfig:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    return build(DataConfig, read_yaml(tmp_path / "c.yaml"), "data")


def test_every_field_from_a_file(tmp_path: Path) -> None:
    expected = DataConfig(
        sources=(SourceConfig("a.jsonl"), SourceConfig("b", "alpaca")),
        tokenizer="tok",
        chat_template="stellarbyte",
        sequence_length=64,
        on_too_long="split",
        packing=True,
        loss_on="all",
        validation_fraction=0.1,
        on_bad_record="skip",
        seed=3,
    )
    assert load(FULL, tmp_path) == expected


def test_defaults(tmp_path: Path) -> None:
    assert load("sources: [{path: x}]\ntokenizer:\n", tmp_path) == DataConfig((SourceConfig("x"),))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sequence_length: 3", "c.yaml:1: data.sources is missing and must be given"),
        ("sources: x", "c.yaml:1: data.sources is 'x', expected a list"),
        ("sources: [x]", "c.yaml:1: data.sources.0 is 'x', expected a mapping with fields such as path"),
        ("sources: []", "c.yaml:1: data.sources is () but must name at least one source"),
        ("sources:\n- path: x\npackng: true", "c.yaml:3: data.packng is not a field; did you mean data.packing?"),
        ("sources:\n- path: x\nzzz: 1", "c.yaml:3: data.zzz is not a field; the fields here are sources, tokenizer,"),
        (
            "sources:\n- path: x\n  format: alpca",
            "c.yaml:3: data.sources.0.format is 'alpca', expected one of auto, messages, prompt_completion, alpaca, "
            "text; did you mean alpaca?",
        ),
        (
            "sources:\n- path: x\n  paht: y",
            "c.yaml:3: data.sources.0.paht is not a field; did you mean data.sources.0.path?",
        ),
        ("sources:\n- path: ''", "c.yaml:2: data.sources.0.path is '' but must name a file"),
        ("sources: [{path: x}]\nsequence_length: 1", "c.yaml:2: data.sequence_length is 1 but must be at least 2"),
        ("sources: [{path: x}]\nsequence_length: 1.5", "c.yaml:2: data.sequence_length is 1.5, expected an integer"),
        ("sources: [{path: x}]\nsequence_length: true", "c.yaml:2: data.sequence_length is true, expected an integer"),
        ("sources: [{path: x}]\npacking: 1", "c.yaml:2: data.packing is 1, expected true or false"),
        ("sources: [{path: x}]\ntokenizer: 7", "c.yaml:2: data.tokenizer is 7, expected a string (quote it)"),
        ("sources: [{path: x}]\nvalidation_fraction: 1", "c.yaml:2: data.validation_fraction is 1.0 but must be at"),
        (
            "sources: [{path: x}]\nvalidation_fraction: .nan",
            "c.yaml:2: data.validation_fraction is nan, expected a fin",
        ),
        ("sources: [{path: x}]\nseed: -1", "c.yaml:2: data.seed is -1 but must be at least 0"),
        ("sources: [{path: x}]\nseed: 1\nseed: 2", "c.yaml:3: seed is given twice, first at"),
        ("- x", "c.yaml:1: the file is a list, expected fields"),
        ("a: [", "c.yaml:1: is not valid YAML"),
        ("? [a]\n: 1", "c.yaml:1: a field's name must be a word, not a sequence"),
        ("sources: &x [*x]", "c.yaml:1: the alias contains itself"),
        ("", "c.yaml:1: data.sources is missing"),
    ],
)
def test_mistakes_are_located(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(text, tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/{complaint}")
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: \xff")
    with pytest.raises(UserError, match=r"x\.yaml is not UTF-8 text"):
        read_yaml(tmp_path / "x.yaml")
    with pytest.raises(UserError, match=r"y\.yaml cannot be read: No such file"):
        read_yaml(tmp_path / "y.yaml")


@dataclass(frozen=True)
class Outer:
    inner: SourceConfig = field(default_factory=lambda: SourceConfig("x"))
    rate: float | None = 1.0


def test_nested_sections_and_optional_numbers(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("inner:\n  path: y\nrate: 3\n")
    assert build(Outer, read_yaml(tmp_path / "c.yaml")) == Outer(SourceConfig("y"), 3.0)
    (tmp_path / "c.yaml").write_text("inner:\n  path: y\nrate: null\n")
    assert build(Outer, read_yaml(tmp_path / "c.yaml")).rate is None
