import enum
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from stellarbyte.config.fields import describe, fields_of, type_words
from stellarbyte.errors import UserError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Inner:
    depth: int
    """How deep."""


@dataclass
class Outer:
    name: str
    """What it is called."""

    inner: Inner
    """What is in it."""

    many: tuple[Inner, ...] = ()
    given: dict[str, Any] = field(
        default_factory=dict,
        metadata={"section": Inner, "defaults": {"depth": "whatever fits"}, "refused": {"width": "write depth"}},
    )
    colour: Colour | str = Colour.RED
    worked_out: int = None  # type: ignore[assignment]
    hidden: int = field(default=0, init=False)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "int"),
        (bool, "true or false"),
        (str | None, "str or null"),
        (float | int | None, "float or int or null"),
        (Literal["none", "int8"], "one of: none, int8"),
        (Literal["none", "int8"] | None, "one of: none, int8 or null"),
        (Colour | str, "one of: red, blue"),
        (tuple[str, ...], "list of str"),
        (list[int] | str, "list of int or str"),
        (list, "list of any value"),
        (Mapping[str, tuple[str, ...]], "mapping of str to list of str"),
        (dict[str, Any] | None, "mapping of str to any value or null"),
        (dict, "mapping"),
        (Inner, "section"),
        (Inner | None, "section or null"),
        (tuple[Inner, ...], "list of sections"),
        (Any, "any value"),
    ],
)
def test_types_are_told_as_yaml_has_them(kind, words):
    assert type_words(kind) == words


def test_fields_of_a_dataclass():
    fields = {each.name: each for each in fields_of(Outer, "outer")}
    assert list(fields) == [f"outer.{name}" for name in ("name", "inner", "many", "given", "colour", "worked_out")]
    assert [each.default for each in fields.values()] == [None, None, "[]", "{}", "red", "as below"]
    assert [each.kind for each in fields.values()][3] == "section"
    assert [each.section for each in fields.values()] == [None, Inner, Inner, Inner, None, None]
    assert fields["outer.name"].text(60) == "outer.name: str; required\n    What it is called."
    assert fields["outer.inner"].text(60).endswith("What is in it. Its fields are depth.")

    given = fields["outer.given"]
    (depth,) = fields_of(Inner, given.name, given.metadata)
    assert (depth.name, depth.default, depth.refused) == ("outer.given.depth", "whatever fits", None)
    (depth,) = fields_of(Inner, given.name, {"refused": {"depth": "write width"}})
    assert depth.refused == "write width"


def test_defaults_are_written_as_yaml():
    @dataclass
    class Written:
        word: str = "on"
        small: float = 1e-8
        nothing: int | None = None
        names: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"hidden": ("fsdp", "expert")})

    assert [each.default for each in fields_of(Written)] == ["'on'", "1.0e-08", "null", "{hidden: [fsdp, expert]}"]


def test_one_field_and_a_section(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert describe("data.sequence_length") == (
        "data.sequence_length: int; default 1024\n"
        "    Number of tokens in a row, the unit of a batch; at most\n"
        "    model.max_position_embeddings."
    )
    assert describe("data.sources.0.path") == describe("data.sources.path")
    assert describe("model.rope_scaling.factor").startswith("model.rope_scaling.factor: float; required\n")
    text = describe("data")
    assert text.startswith("data: section; required\n    What the model reads")
    assert "\n\ndata.tokenizer: str; required\n" in text
    assert "\n\ndata.kind: one of: text, chat; default text\n" in text
    assert max(map(len, text.splitlines())) <= 60


def test_lines_are_no_longer_than_100_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert 90 < max(map(len, describe("model").splitlines())) <= 100


def test_without_a_path_the_sections_in_a_sentence_each():
    text = describe()
    assert "\n  output_dir   The folder of the run: config, metrics and checkpoints.\n" in text
    assert "If it holds a run" not in text
    assert "\n  finetune     The fields of a fine-tuning config" in text


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("data.sorces", "'data.sorces' is no field of a config; did you mean data.sources?"),
        ("lerning_rate", "'lerning_rate' is no field of a config; did you mean optimizer.learning_rate?"),
        ("training.learning_rate", "is no field of a config; did you mean optimizer.learning_rate?"),
        ("data.sources.pth", "did you mean data.sources.path?"),
        ("seed.x", "that field has no fields in it"),
        ("zzz", "'zzz' is no field of a config; the fields there are output_dir, model, data, "),
        ("quantization", "distributed, seed, init_from, lora; those of fine-tuning begin with finetune"),
    ],
)
def test_an_unknown_field_is_told_with_the_nearest(path, complaint):
    with pytest.raises(UserError) as error:
        describe(path)
    assert complaint in str(error.value)


def test_fields_of_fine_tuning():
    assert describe("finetune").startswith("finetune.model: str; required\n")
    assert describe("finetune.lora.r") == "finetune.lora.r: int; default 8\n    Lora attention dimension."
    assert "finetune.lora.layers: list of int or str or null; default null" in describe("finetune.lora")
    assert "default 2e-4 with lora, 5e-5 without" in describe("finetune.training.learning_rate")
    assert "finetune.training.output_dir" not in describe("finetune.training")
    with pytest.raises(UserError, match=r"finetune\.training\.output_dir is not for the config: give output_dir at"):
        describe("finetune.training.output_dir")
    with pytest.raises(UserError, match=r"did you mean finetune\.lora\.r\?"):
        describe("finetune.lora.rr")


def test_every_field_of_every_config_can_be_described():
    def check(kind, name, metadata):
        for each in fields_of(kind, name, metadata):
            assert each.kind and each.meaning and (each.default is None or "\n" not in each.default), each.name
            if each.section is not None and not each.name.startswith(("finetune.lora.", "finetune.training.")):
                check(each.section, each.name, each.metadata)  # PEFT's and Accelerate's say nothing of some fields

    from stellarbyte_jax.config import RunConfig
    from stellarbyte_torch.finetune.config import FinetuneConfig

    check(RunConfig, "", {})
    check(FinetuneConfig, "finetune", {})


def test_help_imports_no_framework():
    code = (
        "import sys; from stellarbyte.config.fields import describe; describe('data'); describe();"
        "print([name for name in ('jax', 'torch', 'flax', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_without_the_libraries_of_fine_tuning_the_door_can_name_the_extra():
    code = (
        "import sys; sys.modules |= dict.fromkeys(('transformers', 'torch', 'peft'))\n"
        "from stellarbyte.config.fields import describe\n"
        "from stellarbyte.door import EXTRAS\n"
        "describe('data')\n"
        "try: describe('finetune.lora.r')\n"
        "except ModuleNotFoundError as error: print(error.name in EXTRAS['torch'])\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
