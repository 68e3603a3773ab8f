import argparse
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of_json
from stellarbyte_jax import data_commands
from stellarbyte_jax.config import DataConfig, RunConfig, SourceConfig
from stellarbyte_jax.data import chat, making
from stellarbyte_jax.data.manifest import Manifest, SampleCounts
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.training.evaluation import evaluate_run
from stellarbyte_jax.training.pretrain import pretrain
from test_jax.shards import open_shards, train_loader, validation_batches

Configure = Callable[..., DataConfig]


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def records(count: int) -> list[dict[str, Any]]:
    """All different, of one to three turns."""
    return [{"messages": turns(f"What is {n}?", f"{n} is {n * n}") * (n % 3 + 1)} for n in range(count)]


def write(path: Path, lines: Iterable[object]) -> Path:
    path.write_text("".join((line if line == "{" else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture
def configure(tmp_path: Path, tokenizer_folder: Path) -> Configure:
    """A config of chat over records, or over a source that is there."""

    def make(source: Iterable[object] | Path, **fields: Any) -> DataConfig:
        path = source if isinstance(source, Path) else write(tmp_path / "chat.jsonl", source)
        defaults: dict = {
            "sources": (SourceConfig(str(path)),),
            "tokenizer": str(tokenizer_folder),
            "shards": str(tmp_path / "shards"),
            "sequence_length": 128,
            "validation_fraction": 0.0,
            "tokens_per_shard": 50,
            "kind": "chat",
        }
        return DataConfig(**(defaults | fields))

    return make


def quietly(data: DataConfig) -> Manifest:
    return prepare(data, report=lambda _: None)


def samples(data: DataConfig, split: str = "train") -> list[np.ndarray]:
    shards = open_shards(data, split)
    return [shards.read(int(start), int(stop)) for start, stop in pairwise(shards.starts)]


def said(data: DataConfig, split: str = "train") -> list[str]:
    """What is trained on in each sample."""
    tokenizer = Tokenizer.load(data.tokenizer)
    return [tokenizer.decode(sample["token"][sample["trained"]]) for sample in samples(data, split)]


def contents(data: DataConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(data.shards).iterdir()}


def test_every_kind_of_file_and_record(tmp_path: Path, configure: Configure) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    write(
        folder / "a.jsonl", [{"messages": turns("q", "from messages")}, {"prompt": "q", "completion": "a completion"}]
    )
    (folder / "b.json").write_text(json.dumps([{"instruction": "q", "input": "i", "output": "an output"}]))
    (folder / "c.csv").write_text('messages\n"' + json.dumps(turns("q", "from csv")).replace('"', '""') + '"\n')
    parquet.write_table(pa.table({"messages": [turns("q", "from parquet")], "id": [1]}), folder / "d.parquet")
    (folder / "e.txt").write_text("plain text")
    data = configure(folder)
    manifest = quietly(data)
    assert said(data) == ["from messages", "a completion", "an output", "from csv", "from parquet", "plain text"]
    trained = sum(int(sample["trained"].sum()) for sample in samples(data))
    assert manifest.samples == SampleCounts(trained_tokens=trained)
    assert Manifest.load(Path(data.shards)) == manifest
    assert quietly(data) == manifest


def test_shards_hold_a_byte_beside_each_token(configure: Configure) -> None:
    data = configure(records(9))
    counts = quietly(data).splits["train"]
    first = np.load(Path(data.shards) / "train-00000.npy", allow_pickle=False)
    assert first.dtype == np.dtype([("token", np.uint16), ("trained", np.bool_)])
    assert (first.shape, first.dtype.itemsize, counts.documents) == ((50,), 3, 9)
    texts = [Tokenizer.load(data.tokenizer).decode_bytes(sample["token"]) for sample in samples(data)]
    assert counts.bytes == sum(map(len, texts))


class Stop(Exception):
    pass


@settings(max_examples=settings.default.max_examples // 12)
@given(stops=st.lists(st.integers(1, 12), min_size=1, max_size=4), on_too_long=st.sampled_from(["split", "drop"]))
def test_an_interrupted_one_goes_on_to_the_same_bytes(
    tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory, stops: list[int], on_too_long: Any
) -> None:
    folder = tmp_path_factory.mktemp("resume")
    bad: list[object] = [{"messages": [{"role": "bot", "content": "x"}]}, "{"]
    lines = [line for pair in zip(records(30), bad * 15, strict=True) for line in pair]
    write(folder / "a.jsonl", lines)
    write(folder / "b.jsonl", [*records(5), {"text": "a long text " * 30}])
    data = DataConfig(
        sources=(SourceConfig(str(folder / "a.jsonl")), SourceConfig(str(folder / "b.jsonl"))),
        tokenizer=str(tokenizer_folder),
        shards=str(folder / "whole"),
        sequence_length=64,
        validation_fraction=0.3,
        tokens_per_shard=50,
        kind="chat",
        on_bad_record="skip",
        on_too_long=on_too_long,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "BATCH_CHARS", 150)
        patch.setattr(chat, "PIECE_CHARS", 0)
        patch.setattr(making, "_TOKENS_PER_CHECKPOINT", 100)
        whole = quietly(data)
        assert whole.bad_record_count == 30
        assert whole.samples is not None and whole.samples.too_long > 3

        parts = dataclasses.replace(data, shards=str(folder / "parts"))
        for stop in stops:
            seen = 0

            def count(_: object, stop: int = stop) -> None:
                nonlocal seen
                seen += 1
                if seen == stop:
                    raise Stop

            try:
                prepare(parts, count, report=lambda _: None)
            except Stop:
                assert not (Path(parts.shards) / "manifest.json").exists()
        assert quietly(parts) == whole
    assert contents(parts) == contents(data)


@pytest.mark.parametrize("on_too_long", ["truncate", "drop", "split"])
def test_too_long_samples_by_the_rule(configure: Configure, on_too_long: str) -> None:
    """What begins a piece is not trained on, as nothing before it predicts it."""
    data = configure([{"prompt": "q", "completion": "ok"}, {"prompt": "q", "completion": "light and dark."}])
    short, long = samples_of(data)
    length = len(long) - 5
    data = dataclasses.replace(data, sequence_length=length, on_too_long=on_too_long)
    manifest = quietly(data)
    pieces = {"truncate": [long[:length]], "drop": [], "split": [long[:length], long[length:]]}[on_too_long]
    found = samples(data)
    assert [sample["token"].tolist() for sample in found] == [piece["token"].tolist() for piece in [short, *pieces]]
    assert [sample["trained"].tolist()[1:] for sample in found[1:]] == [
        piece["trained"].tolist()[1:] for piece in pieces
    ]
    assert not any(sample["trained"][0] for sample in found)
    assert manifest.samples == SampleCounts(
        trained_tokens=sum(int(sample["trained"].sum()) for sample in found),
        too_long=1,
        cut_tokens=len(long) - sum(map(len, pieces)),
    )


def samples_of(data: DataConfig) -> list[np.ndarray]:
    """The samples when none is too long."""
    whole = dataclasses.replace(data, sequence_length=4096, on_too_long="truncate", shards=f"{data.shards}-whole")
    quietly(whole)
    return samples(whole)


def test_samples_without_a_trained_token_are_left_out_and_counted(configure: Configure) -> None:
    data = configure([{"messages": turns("q" * 60, "a")}, {"messages": turns("q", "a")}], sequence_length=32)
    manifest = quietly(data)
    assert (manifest.samples.too_long, manifest.samples.untrained) == (1, 1)  # type: ignore[union-attr]
    assert manifest.samples.summary().endswith("; 1 left out without a trained token")  # type: ignore[union-attr]
    assert said(data) == ["a"]
    only = configure([{"messages": turns("q" * 60, "a")}], sequence_length=32, shards=f"{data.shards}2")
    with pytest.raises(
        UserError, match=r"give no sample \(0 tokens trained on; 1 too long, .*; 1 left out without a tra"
    ):
        quietly(only)


def test_loss_on_all(configure: Configure) -> None:
    data = configure([{"messages": turns("q", "a")}], loss_on="all")
    quietly(data)
    assert said(data) == ["user\nqassistant\na"]


def test_equal_conversations_are_in_one_split(configure: Configure) -> None:
    data = configure(records(40) * 2, validation_fraction=0.3)
    quietly(data)
    train, validation = ([sample.tobytes() for sample in samples(data, split)] for split in ("train", "validation"))
    assert len(train) + len(validation) == 80
    assert train and validation
    assert not set(train) & set(validation)


@settings(max_examples=settings.default.max_examples // 8)
@given(local_size=st.integers(1, 3), process_count=st.integers(1, 4), resume=st.integers(1, 8))
def test_each_sample_once_an_epoch_across_resumes_and_host_counts(
    chat_data: DataConfig, local_size: int, process_count: int, resume: int
) -> None:
    """Law 7; after the resume the number of hosts is another."""
    batch_size = local_size * process_count
    rows = len(train_loader(chat_data, 1, 0))
    epochs = 2
    steps = -(-epochs * rows // batch_size)
    seen: list[bytes] = []
    for start, stop, hosts in ((0, resume, process_count), (resume, steps, 1)):
        shares = np.array_split(range(batch_size), hosts)
        loaders = [train_loader(chat_data, batch_size, 5, share.tolist()) for share in shares]
        for step in range(start, min(stop, steps)):
            for loader in loaders:
                batch = loader.batch(step)
                for tokens, segments in zip(batch["input_ids"], batch["segment_ids"], strict=True):
                    seen.append(tokens[segments > 0].tobytes())
    for epoch in range(epochs):
        tokens = np.frombuffer(b"".join(seen[epoch * rows : (epoch + 1) * rows]), np.int32).tolist()
        expected = np.concatenate(samples(chat_data))["token"].tolist()
        assert sorted(tokens) == sorted(expected)
        assert len(set(seen[epoch * rows : (epoch + 1) * rows])) == rows


@pytest.fixture(scope="module")
def chat_data(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    folder = tmp_path_factory.mktemp("chat_data")
    write(folder / "chat.jsonl", records(60))
    data = DataConfig(
        sources=(SourceConfig(str(folder / "chat.jsonl")),),
        tokenizer=str(tokenizer_folder),
        shards=str(folder / "shards"),
        sequence_length=128,
        validation_fraction=0.2,
        kind="chat",
    )
    quietly(data)
    return data


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"messages": [{"role": "bot", "content": "x"}]}, "chat.jsonl:2 has the unknown role 'bot'"),
        ({"messages": turns("q", " ")}, "chat.jsonl:2 has an empty turn: the field 'messages.1.content' holds no text"),
        ({"messages": [{**turns("q", "a")[1], "tool_calls": [1]}]}, "chat.jsonl:2 has tool_calls, which the chat temp"),
        ("no object", "chat.jsonl:2 is not a JSON object but a string"),
    ],
)
def test_bad_records_end_it_or_are_counted(configure: Configure, record: object, complaint: str) -> None:
    lines = [*records(1), record, *records(2)]
    with pytest.raises(UserError, match=rf"{complaint}.*: mend it, or set on_bad_record to skip"):
        quietly(configure(lines))
    data = configure(lines, on_bad_record="skip")
    manifest = quietly(data)
    assert len(said(data)) == 3
    assert manifest.bad_record_count == 1
    assert complaint in manifest.first_bad_records[0]


def test_a_missing_template_is_named(configure: Configure, tokenizer: Tokenizer, tmp_path: Path) -> None:
    Tokenizer.save_files({"tokenizer.json": tokenizer.files["tokenizer.json"]}, tmp_path / "bare")
    bare = str(tmp_path / "bare")
    with pytest.raises(
        UserError, match=r"chat.jsonl:1 is a conversation, but the tokenizer .*bare has no chat template"
    ):
        quietly(configure(records(2), tokenizer=bare, on_bad_record="skip"))
    data = configure(records(2), tokenizer=bare, chat_template="stellarbyte")
    quietly(data)
    assert said(data)[0] == "0 is 0"


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"loss_on": "all"}, "data.loss_on is all, not assistant"),
        ({"on_too_long": "drop"}, "data.on_too_long is drop, not truncate"),
        ({"sequence_length": 64}, "data.sequence_length is 64, not 128"),
        ({"chat_template": "x.jinja"}, "the chat template is another"),
        ({"kind": "text"}, "data.kind is text, not chat"),
    ],
)
def test_what_is_prepared_is_not_taken_for_another(
    chat_data: DataConfig, fields: dict, difference: str, tmp_path: Path
) -> None:
    if "chat_template" in fields:
        (tmp_path / "x.jinja").write_text("{{ messages }}")
        fields = {"chat_template": str(tmp_path / "x.jinja")}
    with pytest.raises(UserError, match=rf"holds token shards made of something else \({difference}\)"):
        quietly(dataclasses.replace(chat_data, **fields))
    if "chat_template" not in fields:
        refused = (
            r"data.kind is text, but data.shards .* holds token shards of kind chat|is .*, but .* was prepared with"
        )
        with pytest.raises(UserError, match=refused):
            train_loader(dataclasses.replace(chat_data, **fields), 2, 0)


def prepared_before_encodings_had_versions(data: DataConfig) -> None:
    """The folder as an earlier version left it."""
    path = Path(data.shards) / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    del manifest["sha256"], manifest["recipe"]["chat"]["encoding"]
    path.write_text(json.dumps(manifest | {"sha256": sha256_of_json(manifest)}), "utf-8")


def test_shards_of_an_earlier_encoding_are_refused(configure: Configure) -> None:
    """Their marks may have the model learn others' words."""
    data = configure(records(9), validation_fraction=0.3)
    quietly(data)
    train_loader(data, 2, 0)
    prepared_before_encodings_had_versions(data)
    refused = r"holds conversations as version 1 encoded them, .* is version 2, .* run `stellarbyte prepare` anew$"
    for use in (lambda: train_loader(data, 2, 0), lambda: next(validation_batches(data, 2))):
        with pytest.raises(UserError, match=refused):
            use()
    with pytest.raises(UserError, match="the version of how conversations are encoded is 2, not 1"):
        quietly(data)
    shutil.rmtree(data.shards)
    quietly(data)
    train_loader(data, 2, 0)


def test_the_version_of_the_encoding_is_no_matter_of_text(make_shards: Callable[..., DataConfig]) -> None:
    content = json.loads((Path(make_shards(["one", "two"]).shards) / "manifest.json").read_text("utf-8"))
    assert content["recipe"]["chat"] is None
    assert "encoding" not in json.dumps(content)


def test_shards_of_text_are_not_chat(make_shards: Callable[..., DataConfig]) -> None:
    text = make_shards(["one", "two"])
    with pytest.raises(UserError, match=r"\(data.kind is chat, not text\): set data.shards to another folder"):
        quietly(dataclasses.replace(text, kind="chat"))
    with pytest.raises(UserError, match=r"data.kind is chat, but data.shards .* holds token shards of kind text: set"):
        next(validation_batches(dataclasses.replace(text, kind="chat"), 2))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"kind": "text", "loss_on": "all"}, "data.loss_on all is for data.kind chat"),
        ({"kind": "text", "chat_template": "stellarbyte"}, "data.chat_template stellarbyte is for data.kind chat"),
        ({"kind": "text", "on_too_long": "drop"}, "data.on_too_long drop is for data.kind chat"),
        (
            {"sources": (SourceConfig("x", ("a",)),)},
            "data.sources x has fields or a template, which are for data.kind te",
        ),
    ],
)
def test_settings_of_the_other_kind_are_refused(configure: Configure, fields: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        configure([], **fields)


def test_prepare_prints_what_became_of_the_samples(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = configure(records(3), sequence_length=40)
    given = {"config": tmp_path / "x.yaml", "overrides": [], "part": None, "merge": None, "before": lambda _: None}
    options = argparse.Namespace(**given)
    monkeypatch.setattr("stellarbyte_jax.config_file.load_run_config", lambda *_: type("Run", (), {"data": data})())
    data_commands.prepare(options)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 3 samples, ")
    assert " tokens trained on; " in lines[2]
    assert " too long, " in lines[2]


@pytest.mark.usefixtures("one_device")
def test_a_run_learns_to_answer(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run_config()
    text = dataclasses.replace(config.data, validation_fraction=0.0)
    lines = [{"messages": turns(f"{n}", "light and dark")} for n in range(60)]
    chat_fields = {
        "kind": "chat",
        "sources": (SourceConfig(str(write(tmp_path / "chat.jsonl", lines))),),
        "shards": str(tmp_path / "chat_shards"),
        "sequence_length": 64,
        "validation_fraction": 0.2,
    }
    config = dataclasses.replace(config, data=dataclasses.replace(text, **chat_fields))
    manifest = quietly(config.data)
    assert pretrain(config)
    metrics = [json.loads(line) for line in (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in metrics if "learning_rate" in line]
    assert steps[-1]["loss"] < 0.75 * steps[0]["loss"]
    assert steps[0]["accuracy"] < 0.1 < 0.9 < steps[-1]["accuracy"]

    figures, _ = evaluate_run(config.output_dir)
    validation = samples(config.data, "validation")
    assert figures["tokens"] == sum(int(sample["trained"].sum()) for sample in validation)
    # Each sample answers the same 14 bytes, and its end, which is none.
    bits = figures["loss"] * figures["tokens"] / np.log(2)
    assert figures["bits_per_byte"] == pytest.approx(bits / (14 * len(validation)), rel=1e-5)
    assert manifest.splits["validation"].bytes > 14 * len(validation)
