"""YAML and overrides become the same typed config, and every mistake is one sentence that says where it stands."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stellarbyte.errors import UserError
from stellarbyte_jax.config import (
    ByteConfig,
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    TrainingConfig,
)
from stellarbyte_jax.config_file import (
    differing_fields,
    load_model_config,
    load_run_config,
    model_config_from_dict,
    run_config_from_dict,
    save_config,
    to_dict,
)

CONFIGS = Path(__file__).parents[2] / "configs"

RUN = """\
output_dir: runs/x
model:
  hidden_size: 64
  num_attention_heads: 4
data:
  sources:
    - path: corpus.jsonl
      fields: [title, text]
  tokenizer: tok
  shards: shards
  sequence_length: 128
training:
  max_steps: 200
  batch_size: 8
optimizer:
  learning_rate: 3e-4
"""


def run_file(folder: Path, text: str = RUN) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_run_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path.parent) + "/", "")


def test_a_run_file(tmp_path: Path) -> None:
    config = load_run_config(run_file(tmp_path))
    assert config == RunConfig(
        output_dir="runs/x",
        model=ByteConfig(hidden_size=64, num_attention_heads=4),
        data=DataConfig((SourceConfig("corpus.jsonl", ("title", "text")),), "tok", "shards", 128),
        training=TrainingConfig(max_steps=200, batch_size=8),
        optimizer=OptimizerConfig(learning_rate=3e-4),
    )
    assert type(config.optimizer.learning_rate) is float


@pytest.mark.parametrize("path", sorted((CONFIGS / "run").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_run_files_load_and_survive_saving(path: Path, tmp_path: Path) -> None:
    config = load_run_config(path)
    assert config.output_dir == f"runs/{path.stem}"
    save_config(config, tmp_path / "a" / "config.yaml")
    assert load_run_config(tmp_path / "a" / "config.yaml") == config


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", 3.26), ("30m", 27.8), ("125m", 123.6), ("1b", 1100.0), ("7b", 6738.4)]
)
def test_shipped_models_have_the_size_they_say(name: str, millions: float) -> None:
    config = load_model_config(CONFIGS / "model" / f"{name}.yaml")
    assert config.head_dim is not None
    assert config.num_key_value_heads is not None
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    per_hidden = 2 * queries + 2 * keys + 3 * config.intermediate_size + 2
    embeddings = config.vocab_size * (1 if config.tie_word_embeddings else 2)
    parameters = config.hidden_size * (config.num_hidden_layers * per_hidden + embeddings + 1)
    assert parameters / 1e6 == pytest.approx(millions, rel=0.01)


def test_model_file_is_relative_to_the_run_file_or_for_an_override_to_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.yaml").write_text("hidden_size: 24\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "small.yaml").write_text("hidden_size: 48\n")
    text = RUN.replace("model:\n  hidden_size: 64\n  num_attention_heads: 4\n", "model: small.yaml\n")
    path = run_file(tmp_path, text)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_run_config(path).model.hidden_size == 24
    assert load_run_config(path, ["--model", "small.yaml"]).model.hidden_size == 48
    assert load_run_config(path, ["--model.num_hidden_layers", "1"]).model == ByteConfig(
        hidden_size=24, num_hidden_layers=1
    )
    assert "run.yaml:2: model is 'gone.yaml', but there is no file" in complaint(
        run_file(tmp_path, text.replace("small.yaml", "gone.yaml"))
    )


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (["--seed", "3"], {"seed": 3}),
        (["--seed=3", "--training.max_steps=300"], {"seed": 3, "training.max_steps": 300}),
        (["--optimizer.learning_rate", "1e-3"], {"optimizer.learning_rate": 1e-3}),
        (["--optimizer.max_grad_norm", "2"], {"optimizer.max_grad_norm": 2.0}),
        (["--model.tie_word_embeddings", "true"], {"model.tie_word_embeddings": True}),
        (["--data.sources.0.path", "x=y"], {"data.sources.0.path": "x=y"}),
        (["--data.sources.0.fields", "[a, b]"], {"data.sources.0.fields": ["a", "b"]}),
        (["--data.sources.0.fields.1", "b"], {"data.sources.0.fields": ["title", "b"]}),
        (["--data.sources.0.template", "{title}: {text}"], {"data.sources.0.template": "{title}: {text}"}),
        (["--data.sources.0.template", r'"{title}\n{text}"'], {"data.sources.0.template": "{title}\n{text}"}),
        (["--data.sources.0.template", "null"], {}),
        (["--output_dir", "2026"], {"output_dir": "2026"}),
        (["--output_dir", ": ["], {"output_dir": ": ["}),
        (["--mesh.data=-1"], {}),
        (["--mesh.data", "2"], {"mesh.data": 2}),
        (["--training.eval_batches", "2", "--training.eval_batches", "3"], {"training.eval_batches": 3}),
    ],
)
def test_overrides(tmp_path: Path, words: list[str], changed: dict[str, object]) -> None:
    path = run_file(tmp_path)
    differences = differing_fields(load_run_config(path), load_run_config(path, words))
    assert {name: value for name, _, value in differences} == changed


def test_an_override_appends_to_a_list(tmp_path: Path) -> None:
    sources = load_run_config(run_file(tmp_path), ["--data.sources.1.path", "more"]).data.sources
    assert [source.path for source in sources] == ["corpus.jsonl", "more"]


def test_an_override_gives_what_the_file_lacks(tmp_path: Path) -> None:
    path = run_file(tmp_path, RUN.replace("output_dir: runs/x\n", ""))
    assert complaint(path) == "run.yaml:1: output_dir is missing and must be given"
    assert load_run_config(path, ["--output_dir", "y"]).output_dir == "y"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "sequence_length: 128",
            "sequnce_length: 128",
            "run.yaml:11: data.sequnce_length is not a field; did you mean data.sequence_length?",
        ),
        (
            "output_dir: runs/x",
            "output_dir: runs/x\nlearning_rate: 1",
            "run.yaml:2: learning_rate is not a field; did you mean optimizer.learning_rate?",
        ),
        ("hidden_size", "zzz", "run.yaml:3: model.zzz is not a field; the fields here are vocab_size, hidden_size,"),
        ("max_steps: 200", "max_steps: many", "run.yaml:13: training.max_steps is 'many', expected an integer"),
        ("max_steps: 200", "max_steps: 1.5", "run.yaml:13: training.max_steps is 1.5, expected an integer"),
        ("max_steps: 200", "max_steps: true", "run.yaml:13: training.max_steps is true, expected an integer"),
        ("max_steps: 200", "max_steps:", "run.yaml:13: training.max_steps is null, expected an integer"),
        ("3e-4", "fast", "run.yaml:16: optimizer.learning_rate is 'fast', expected a finite number"),
        ("3e-4", ".inf", "run.yaml:16: optimizer.learning_rate is inf, expected a finite number"),
        ("3e-4", "false", "run.yaml:16: optimizer.learning_rate is false, expected a finite number"),
        ("3e-4", "1" + 400 * "0", "expected a finite number"),
        ("runs/x", "2026", "run.yaml:1: output_dir is 2026, expected a string (quote it)"),
        ("[title, text]", "text", "run.yaml:8: data.sources.0.fields is 'text', expected a list"),
        ("[title, text]", "[title, 3]", "run.yaml:8: data.sources.0.fields.1 is 3, expected a string"),
        ("[title, text]", "[]", "run.yaml:8: data.sources.0.fields [] must name at least one field of the records"),
        (
            "batch_size: 8",
            "batch_size: 8\n  dtype: f16",
            "run.yaml:15: training.dtype is 'f16', expected one of float32, bfloat16",
        ),
        ("batch_size: 8", "", "run.yaml:12: training.batch_size is missing and must be given"),
        ("  tokenizer: tok\n  shards: shards\n", "", "run.yaml:5: data.tokenizer and data.shards are missing"),
        ("  hidden_size: 64\n  num_attention_heads: 4\n", "  - 1\n", "run.yaml:2: model is a list, expected a mapping"),
        (
            "hidden_size: 64",
            "hidden_size: 65",
            "run.yaml:3: model.hidden_size 65 is not divisible",
        ),
        ("sequence_length: 128", "sequence_length: 4096", "run.yaml:11: data.sequence_length 4096 is longer than"),
        (
            "batch_size: 8",
            "batch_size: 8\n  batch_size: 9",
            "run.yaml:15: batch_size is given twice, first at run.yaml:14",
        ),
        ("max_steps: 200", "[a]: 200", "run.yaml:13: a field's name must be a word, not a sequence"),
        ("[title, text]", "[title, text", "run.yaml:9: is not valid YAML"),
        ("tokenizer: tok", "tokenizer: *tok", "run.yaml:9: is not valid YAML: found undefined alias"),
        (
            "tokenizer: tok",
            "tokenizer: !!python/object:os.x tok",
            "run.yaml:9: 'tok' has the tag tag:yaml.org",
        ),
        ("tokenizer: tok", "tokenizer: &t [*t]", "run.yaml:9: the alias contains itself"),
        ("tokenizer: tok", "tokenizer: \x07", "run.yaml: is not valid YAML"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RUN
    assert message in complaint(run_file(tmp_path, RUN.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sede", "3"], "--sede 3: sede is not a field; did you mean seed?"),
        (
            ["--data.sequnce_length=3"],
            "--data.sequnce_length=3: data.sequnce_length is not a field; did you mean data.",
        ),
        (["--model.hidden_size", "65"], "--model.hidden_size 65: model.hidden_size 65 is not divisible"),
        (["--training.max_steps", "many"], "--training.max_steps many: training.max_steps is 'many', expected an int"),
        (["--data.sources.3.path", "x"], "data.sources is a list of 1: '3' is no index of it"),
        ([f"--data.sources.{'9' * 5000}.path", "x"], "is no index of it"),
        (["--data.sources.\u0663.path", "x"], "is no index of it"),
        (["--" + "a." * 50_000 + "b", "1"], "has 50001 names between dots, where 32 are the most"),
        (["--data.sources.first.path", "x"], "'first' is no index of it"),
        (["--seed.x", "1"], "--seed.x 1: seed is a mapping, expected an integer"),
        (["--training.max_steps.x", "1"], "training.max_steps is 200, which has no field x"),
        (["--seed"], "--seed has no value: write --seed value"),
        (["--seed", "--output_dir=x"], "--seed has no value"),
        (["seed", "3"], "'seed' is not an override: write --section.field value"),
        (["--"], "'--' is not an override"),
        (["--model", "3"], "--model 3: model is 3, expected a mapping"),
        (["--data", "null"], "data.sources and data.tokenizer and data.shards are missing"),
    ],
)
def test_mistakes_in_overrides(tmp_path: Path, words: list[str], message: str) -> None:
    assert message in complaint(run_file(tmp_path), *words)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "gone.yaml cannot be read: No such file or directory" in complaint(tmp_path / "gone.yaml")
    assert "is a folder: name a file" in complaint(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"output_dir: \xe9\n")
    assert "latin.yaml is not UTF-8 text (byte 12)" in complaint(tmp_path / "latin.yaml")
    assert "model and data and training are missing" in complaint(run_file(tmp_path, ""))
    assert "the file is a list, expected fields" in complaint(run_file(tmp_path, "- 1\n"))


def test_saving_where_nothing_can_be_written(tmp_path: Path) -> None:
    config = load_run_config(run_file(tmp_path))
    with pytest.raises(UserError, match="cannot be written"):
        save_config(config, run_file(tmp_path) / "config.yaml")


def test_dicts_are_plain_and_come_back(tmp_path: Path) -> None:
    config = load_run_config(run_file(tmp_path))
    plain = json.loads(json.dumps(to_dict(config)))
    assert run_config_from_dict(plain, "metadata") == config
    assert model_config_from_dict(plain["model"], "metadata") == config.model
    plain["model"]["colour"] = "red"
    with pytest.raises(UserError, match=r"^metadata: model\.colour is not a field"):
        run_config_from_dict(plain, "metadata")


def test_differing_fields(tmp_path: Path) -> None:
    config = load_run_config(run_file(tmp_path))
    assert differing_fields(config, config) == []
    other = dataclasses.replace(
        config,
        seed=1,
        model=dataclasses.replace(config.model, head_dim=32),
        data=dataclasses.replace(config.data, sources=(*config.data.sources, SourceConfig("b"))),
    )
    (model, data, seed) = differing_fields(config, other)
    assert model == ("model.head_dim", 16, 32)
    assert seed == ("seed", 0, 1)
    assert data[0] == "data.sources"
    assert [[source["path"] for source in sources] for sources in data[1:]] == [["corpus.jsonl"], ["corpus.jsonl", "b"]]


positive = st.integers(1, 10**9)
share = st.floats(0, 1, exclude_max=True)
above_zero = st.floats(1e-37, 1e38)
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
# Of a file or a folder of this machine: S3:/ and the like are refused, as the misspelt names of buckets.
name = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20).filter(lambda x: ":/" not in x)


@st.composite
def run_configs(draw: st.DrawFn) -> RunConfig:
    source = st.builds(
        SourceConfig,
        path=name,
        fields=st.lists(text, min_size=1, max_size=3).map(tuple),
        template=st.none() | text,
    )
    model = ByteConfig(
        hidden_size=64 * draw(st.integers(1, 100)),
        num_attention_heads=draw(st.sampled_from([1, 2, 4])),
        num_key_value_heads=draw(st.sampled_from([None, 1])),
        rms_norm_eps=draw(above_zero),
        hidden_act=draw(st.sampled_from(["silu", "gelu"])),
        tie_word_embeddings=draw(st.booleans()),
    )
    data = DataConfig(
        sources=tuple(draw(st.lists(source, min_size=1, max_size=3))),
        tokenizer=draw(name),
        shards=draw(name),
        sequence_length=draw(st.integers(2, 2048)),
        validation_fraction=draw(share),
        on_bad_record=draw(st.sampled_from(["fail", "skip"])),
    )
    training = TrainingConfig(
        max_steps=draw(positive), batch_size=draw(positive), eval_batches=draw(st.none() | positive)
    )
    optimizer = OptimizerConfig(
        learning_rate=draw(above_zero), warmup_steps=0, weight_decay=draw(st.just(0.0) | above_zero)
    )
    return RunConfig(
        draw(name),
        model,
        data,
        training,
        optimizer,
        MeshConfig(),
        CheckpointConfig(),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@settings(max_examples=settings.default.max_examples // 4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=run_configs())
def test_saved_configs_load_equal(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save_config(config, path)
    assert load_run_config(path) == config
    # To every other reader of YAML the file says the same.
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == to_dict(config)
