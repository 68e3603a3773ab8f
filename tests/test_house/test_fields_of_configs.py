"""Every field of every config says what it means; both model configs say the same; a field tells a config's kind."""

import dataclasses
import inspect
import re

import pytest

from stellarbyte.architecture import ByteConfig, RopeScaling
from stellarbyte.config.docstrings import field_docstrings
from stellarbyte.config.fields import Field, fields_of
from stellarbyte.config.kind import FINETUNING, PRETRAINING
from stellarbyte_jax import config as pretraining
from stellarbyte_torch.configuration_stellarbyte import ByteConfig as TorchByteConfig
from stellarbyte_torch.data.config import DataConfig, SourceConfig
from stellarbyte_torch.finetune.config import FinetuneConfig, TrainableConfig
from stellarbyte_torch.lora.config import LoRAConfig
from stellarbyte_torch.quantization.settings import QuantizationSettings

CONFIGS = [
    ByteConfig,
    RopeScaling,
    *(getattr(pretraining, name) for name in pretraining.__all__ if name not in ("ByteConfig", "RopeScaling")),
    *(DataConfig, SourceConfig, FinetuneConfig, TrainableConfig, LoRAConfig, QuantizationSettings),
]


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_field_has_a_docstring(kind: type) -> None:
    docstrings = field_docstrings(kind)
    assert [field.name for field in dataclasses.fields(kind) if field.name not in docstrings] == []


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_our_docstrings_are_sentences(kind: type) -> None:
    for name, text in field_docstrings(kind).items():
        if not kind.__dataclass_fields__[name].metadata.get("help"):
            assert text[0].isupper() or text.startswith("arXiv"), f"{name}: {text}"
            assert text.endswith("."), f"{name}: {text}"


def test_both_model_configs_say_the_same_of_a_field() -> None:
    arguments = inspect.cleandoc(TorchByteConfig.__doc__ or "").partition("Args:\n")[2]
    pieces = re.split(r"^    (\w+) \(.*\):$", arguments, flags=re.MULTILINE)
    theirs = {name: " ".join(text.split()) for name, text in zip(pieces[1::2], pieces[2::2], strict=True)}
    assert theirs.pop("use_cache").endswith(".")
    ours = field_docstrings(ByteConfig)
    assert theirs == {name: re.sub(r"\bnull\b", "`None`", text) for name, text in ours.items()}


def test_a_kind_is_told_by_fields_that_the_other_does_not_have() -> None:
    theirs = {field.name for section in fields_of(FinetuneConfig) for field in _with_inner(section)}
    ours = {field.name for section in fields_of(pretraining.RunConfig) for field in _with_inner(section)}
    for markers, having, lacking in ((PRETRAINING, ours, theirs), (FINETUNING, theirs, ours)):
        names = {f"{section}.{name}".lstrip(".") for section, names in markers.items() for name in names}
        assert names <= having
        assert not names & lacking
    # What a config of either kind must have tells it, whatever else it leaves out.
    assert "shards" in PRETRAINING["data"] and "mesh" in PRETRAINING[""]
    assert set(FINETUNING[""]) == {n for n in theirs - ours if "." not in n}
    assert set(FINETUNING["data"]) == {n.partition(".")[2] for n in theirs - ours if re.fullmatch(r"data\.\w+", n)}


def _with_inner(field: Field) -> list[Field]:
    inner = [] if field.section is None else list(fields_of(field.section, field.name, field.metadata))
    return [field, *(each for each in inner if each.refused is None)]
