import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stellarbyte.config.dry_run import DryRun
from stellarbyte.config.plain import save_yaml
from stellarbyte.errors import UserError
from stellarbyte_torch.data.config import SourceConfig
from stellarbyte_torch.finetune.config import FinetuneConfig, load_finetune_config
from stellarbyte_torch.finetune.dry_run import dry_run
from stellarbyte_torch.finetune.setup import training_fields
from test_torch.finetuning import config, model_folder, run

HIDDEN, LAYERS = 32, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., DryRun]:
    """A dry run of a config, which must leave the disk as it is."""

    def check(config: FinetuneConfig, *overrides: str) -> DryRun:
        save_yaml(config, tmp_path / "c.yaml")
        before = sorted(tmp_path.rglob("*"))
        found = dry_run(tmp_path / "c.yaml", overrides)
        assert sorted(tmp_path.rglob("*")) == before
        json.dumps(found.to_dict())
        assert found.text()
        return found

    return check


def report(found: DryRun, section: str) -> dict[str, Any]:
    return dict(found.report[section])


def test_a_run_of_adapters_that_may_begin(check, folder, tmp_path):
    given = config(folder, tmp_path / "run")
    found = check(given)
    # What a run writes into its folder.
    save_yaml(found.config, tmp_path / "resolved.yaml")
    assert load_finetune_config(tmp_path / "resolved.yaml") == replace(given, training=training_fields(given))

    size = (folder / "chat.jsonl").stat().st_size
    data = {"sources": [{"path": str(folder / "chat.jsonl"), "files": 1, "bytes": size}], "records": 50}
    assert report(found, "data") == data
    tokenizer = {"from": str(folder), "vocabulary": 300, "chat_template": "its own", "fits_the_model": True}
    assert report(found, "tokenizer") == tokenizer
    model = report(found, "model")
    assert model["architecture"] == "ByteForCausalLM"
    assert (model["num_hidden_layers"], model["hidden_size"], model["vocab_size"]) == (LAYERS, HIDDEN, 320)
    assert {each["name"]: (each["modules"], each["rank"]) for each in model["adapts"]} == {
        f"{name}_proj": (LAYERS, 4) for name in ("q", "k", "v", "o", "gate", "up", "down")
    }
    assert report(found, "training").items() >= {"rows_a_step": 8, "steps": 8, "steps_an_epoch": "about 5"}.items()
    assert report(found, "training")["tokens_a_step_at_most"] == 8 * 96
    run_facts = {"output_dir": given.output_dir, "newest_checkpoint": "none", "would": f"start from {folder}"}
    assert report(found, "run") == run_facts
    assert not any("warnings" in facts for facts in found.report.values())


def test_counts_are_those_of_the_run(check, folder, tmp_path):
    given = config(folder, tmp_path / "run", training={"max_steps": 1})
    facts = report(check(given), "model")
    summary, _ = run(given)
    assert facts["trained_parameters"] == summary["trainable_parameters"]
    assert facts["parameters"] == summary["parameters"] - summary["trainable_parameters"]
    again = report(check(given), "run")
    assert again["newest_checkpoint"] == 1
    assert again["would"] == "find that it has ended, after 1 steps"
    other = report(check(given, "--data.sequence_length", "64"), "run")
    assert "data.sequence_length (was 96, now 64)" in other["warnings"][0]


def test_weights_that_train_without_lora(check, folder, tmp_path):
    whole = report(check(config(folder, tmp_path / "run", lora=None)), "model")
    assert whole["trained_parameters"] == whole["parameters"] and whole["trained_share"] == "100.00%"
    part = report(check(config(folder, tmp_path / "run", lora=None), "--trainable.norms", "true"), "model")
    assert part["trained_parameters"] == (2 * LAYERS + 1) * HIDDEN
    assert "adapts" not in part


def test_how_an_adapter_begins_needs_no_weights(check, folder, tmp_path):
    lora = {"r": 2, "target_modules": ["q_proj"], "layers": "1", "init_lora_weights": "pissa"}
    model = report(check(config(folder, tmp_path / "run", lora=lora)), "model")
    assert model["adapts"] == [{"name": "q_proj", "modules": 1, "rank": 2}]


def test_steps_without_max_steps(check, folder, tmp_path):
    words = ["--training.max_steps", "-1", "--training.num_train_epochs", "3"]
    training = report(check(config(folder, tmp_path / "run"), *words), "training")
    assert (training["steps_an_epoch"], training["steps"]) == ("about 5", "about 15")
    # How many rows samples are packed into is known only when they are read.
    packed = report(check(config(folder, tmp_path / "run"), *words, "--data.packing", "true"), "training")
    assert packed["epochs"] == 3 and "steps" not in packed and "steps_an_epoch" not in packed


def test_what_is_not_here_is_a_warning(check, folder, tmp_path):
    given = config(folder, tmp_path / "run", data={"sources": (SourceConfig(str(tmp_path / "x.jsonl")),)})
    found = check(replace(given, model=str(tmp_path / "nowhere")), "--quantization", "nf4")
    assert "x.jsonl does not exist" in report(found, "data")["warnings"][0]
    assert "nowhere" in report(found, "tokenizer")["warnings"][0]
    assert f"model {tmp_path / 'nowhere'} is not a folder" in report(found, "model")["warnings"][0]
    assert "steps_an_epoch" not in report(found, "training")
    quantised = report(check(config(folder, tmp_path / "run"), "--quantization", "nf4"), "model")
    assert "quantization nf4 needs a CUDA GPU" in quantised["warnings"][0]
    assert quantised["adapts"]
    packages = report(check(config(folder, tmp_path / "run"), "--training.report_to", "neptune"), "training")
    assert "training.report_to neptune needs a package" in packages["warnings"][0]


def test_a_model_of_the_hub_is_not_downloaded(check, folder, tmp_path, monkeypatch):
    given = config(folder, tmp_path / "run")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    facts = report(check(replace(given, model="nobody/nothing-at-all")), "model")
    assert "nobody/nothing-at-all is neither a folder here nor downloaded from the Hub yet" in facts["warnings"][0]


def test_a_tokenizer_and_a_length_that_do_not_fit_are_warnings(check, folder, tmp_path):
    tokenizer = report(check(config(folder, tmp_path / "run", data={"sequence_length": 129})), "tokenizer")
    assert not tokenizer["fits_the_model"]
    assert "data.sequence_length 129 is more than the 128 positions" in tokenizer["warnings"][0]
    missing = report(check(config(folder, tmp_path / "run", data={"chat_template": "no.jinja"})), "tokenizer")
    assert "data.chat_template" in missing["warnings"][0]


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["--lora.target_modules", "[w_proj]"], "lora.target_modules"),
        (["--lora.layers", "7"], "lora.layers names layer 7"),
        (["--training.optim_args", "foo=1"], "training.optim_args has 'foo'"),
        (["--training.max_step", "3"], "did you mean training.max_steps?"),
    ],
)
def test_what_the_config_has_wrong_is_a_mistake(overrides, complaint, check, folder, tmp_path):
    with pytest.raises(UserError) as error:
        check(config(folder, tmp_path / "run"), *overrides)
    assert complaint in str(error.value)
