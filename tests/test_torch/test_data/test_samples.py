import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Trainer, TrainingArguments

from stellarbyte.chat.conversations import parse_record
from stellarbyte.chat.encoding import ChatEncoder, Sample
from stellarbyte.errors import UserError
from stellarbyte_torch.data import samples as samples_module
from stellarbyte_torch.data.config import DataConfig, SourceConfig
from stellarbyte_torch.data.samples import prepare_data, read_samples
from stellarbyte_torch.data.tokenizer import chat_tokenizer

from ..exported import export
from ..tiny import tiny_model

WORDS = ["quick", "brown", "fox", "lazy", "dog", "春眠"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(export(tmp_path_factory.mktemp("export")))


def record(number: int) -> dict[str, Any]:
    return {"prompt": f"Say {number}.", "completion": " ".join(WORDS[: 1 + number % 6] * (1 + number % 4))}


def write(folder: Path, records: list[Any], name: str = "x.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def config(path: Path, **changes: Any) -> DataConfig:
    return replace(DataConfig((SourceConfig(str(path)),), sequence_length=128, validation_fraction=0.0), **changes)


def key(sample: Sample) -> tuple[int, ...]:
    return tuple(sample.input_ids.tolist())


def test_samples_are_the_encoded_records_in_order(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, [record(number) for number in range(1100)])
    encoder = ChatEncoder(chat_tokenizer(tokenizer))
    expected = encoder.encode([encoder.render(parse_record(record(number), "x")) for number in range(1100)])
    told: list[int] = []
    samples = read_samples(config(path), tokenizer, told.append)
    assert [key(sample) for sample in samples.train] == [key(sample) for sample in expected]
    assert [sample.where for sample in samples.train] == [f"{path}:{number}" for number in range(1, 1101)]
    assert samples.records == told[-1] == 1100
    assert samples.tokens == sum(map(len, samples.train))
    assert samples.trained_tokens == sum(sample.trained.sum() for sample in samples.train)
    assert samples.summary().startswith("1100 records: 1100 training and 0 validation samples, ")
    assert ";" not in samples.summary()


def test_long_records_are_encoded_a_few_at_a_time(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["ab " * 100] * 5 + ["ab"] * 3
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    seen = []
    encode = ChatEncoder.encode
    monkeypatch.setattr(ChatEncoder, "encode", lambda self, chats: (seen.append(len(chats)), encode(self, chats))[1])
    monkeypatch.setattr(samples_module, "_BATCH_CHARACTERS", 500)
    assert read_samples(DataConfig((SourceConfig(str(path)),)), tokenizer).records == 8
    assert seen == [2, 2, 4]


def test_the_only_text_is_split_by_passages(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "x.txt"
    path.write_text(" ".join(f"{word} {n}" for n in range(40) for word in WORDS))
    whole = read_samples(config(path, sequence_length=10_000), tokenizer).train[0]
    samples = read_samples(config(path, sequence_length=10_000, validation_fraction=0.1), tokenizer)
    assert len(samples.validation) == 1 < len(samples.train)
    parts = [*samples.train, *samples.validation]
    assert sorted(token for part in parts for token in key(part)) == sorted(key(whole))
    assert samples.tokens == len(whole)
    assert not any(part.trained[0] for part in samples.validation)
    path.write_text("brown fox")  # no passage of it is worth setting apart
    assert read_samples(config(path, validation_fraction=0.1), tokenizer).validation == []
    write(tmp_path, [record(1)], "x.jsonl")  # a conversation is whole or not there
    assert read_samples(config(tmp_path / "x.jsonl", validation_fraction=0.5), tokenizer).validation == []


MISSING = ["NaN", "null", "12", "true", "[]", "{}", '""', '"  "', r'"a\ud83d"', "Infinity", "1e999"]


@pytest.mark.parametrize("value", MISSING)
def test_what_is_no_text_is_a_bad_record(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, value: str) -> None:
    path = tmp_path / "x.jsonl"
    lines = [
        '{"text": VALUE}',
        '{"prompt": "Say.", "completion": VALUE}',
        '{"messages": [{"role": "user", "content": VALUE}, {"role": "assistant", "content": "yes"}]}',
        '{"messages": [{"role": "user", "content": "yes?"}, {"role": "assistant", "content": VALUE}]}',
        json.dumps(record(1)),
    ]
    path.write_text("\n".join(lines).replace("VALUE", value))
    samples = read_samples(config(path, on_bad_record="skip"), tokenizer)
    assert (samples.bad_records, len(samples.train)) == (4, 1)
    with pytest.raises(UserError, match=r"x.jsonl:1 .*mend it, or set data.on_bad_record to skip"):
        read_samples(config(path), tokenizer)


def test_validation_samples_depend_on_the_sample_alone(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    records = [record(number) for number in range(60)]
    doubled = write(tmp_path, [*records, *records])
    backwards = write(tmp_path, [*records, *records][::-1], "y.jsonl")
    first = read_samples(config(doubled, validation_fraction=0.2), tokenizer)
    again = read_samples(config(backwards, validation_fraction=0.2), tokenizer)
    other = read_samples(config(doubled, validation_fraction=0.2, seed=1), tokenizer)
    assert len(first.validation) == 24
    assert not set(map(key, first.train)) & set(map(key, first.validation))
    assert Counter(map(key, first.validation)) == Counter(map(key, again.validation))
    assert set(map(key, first.validation)) != set(map(key, other.validation))


@pytest.mark.parametrize("times", [1, 3])
def test_a_large_fraction_leaves_something_to_train_on(
    times: int, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write(tmp_path, [record(number) for number in range(10)] * times)
    samples = read_samples(config(path, validation_fraction=0.99), tokenizer)
    assert (len(samples.train), len(samples.validation)) == (times, 9 * times)


def test_too_few_samples_leave_nothing_for_validation(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    for records in ([record(0)], [record(0)] * 5):
        samples = read_samples(config(write(tmp_path, records), validation_fraction=0.5), tokenizer)
        assert (len(samples.train), len(samples.validation)) == (len(records), 0)
    assert prepare_data(config(write(tmp_path, [record(0)])), tokenizer).validation is None


@pytest.mark.parametrize("on_too_long", ["truncate", "drop", "split"])
def test_too_long_samples(on_too_long: Any, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    records = [record(0), record(23), {"prompt": "x " * 60, "completion": "never reached"}, record(23)]
    path = write(tmp_path, records)
    whole = read_samples(config(path, sequence_length=1000), tokenizer).train
    lengths = [len(sample) for sample in whole]
    length = lengths[1] - 5  # cuts off some of the answer of the second and fourth
    assert lengths[0] <= length < lengths[2]
    samples = read_samples(config(path, sequence_length=length, on_too_long=on_too_long), tokenizer)
    assert (samples.records, samples.too_long) == (4, 3)
    assert all(len(sample) <= length and sample.trained.any() and not sample.trained[0] for sample in samples.train)
    kept = [key(sample) for sample in samples.train]
    if on_too_long == "drop":
        assert kept == [key(whole[0])]
        assert (samples.untrained, samples.cut_tokens) == (0, sum(lengths[1:]))
    elif on_too_long == "truncate":
        assert kept == [key(whole[index])[:length] for index in (0, 1, 3)]
        assert (samples.untrained, samples.cut_tokens) == (1, sum(lengths[1:]) - 3 * length)
    else:
        assert (samples.cut_tokens, kept[0], kept[1]) == (0, key(whole[0]), key(whole[1])[:length])
        assert kept[2] == key(whole[1])[length:]
        pieces = [-(-len(sample) // length) for sample in whole]
        assert len(kept) == sum(pieces) - samples.untrained
        assert samples.untrained > 0
    assert f"; 3 too long, {samples.cut_tokens} tokens cut off" in samples.summary()


def test_bad_records_are_skipped_and_told(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, [record(0), 3, {"x": 1}, {"prompt": "x", "completion": "\ud800"}, record(1)])
    with pytest.raises(UserError, match=r"x.jsonl:2 is not a JSON object but a number: mend it, or set data.on_bad"):
        read_samples(config(path), tokenizer)
    samples = read_samples(config(path, on_bad_record="skip"), tokenizer)
    assert (samples.records, samples.bad_records, len(samples.train)) == (5, 3, 2)
    assert f"; 3 bad records skipped: {path}:2 is not a JSON object but a number; {path}:3" in samples.summary()
    assert "lone surrogate U+D800" in samples.summary()


def test_nothing_to_train_on_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, [{"messages": [{"role": "user", "content": "x"}]}])
    with pytest.raises(
        UserError, match=r"of 1 records 0 were bad, 0 too long for sequence_length 128, and 1 samples had no"
    ):
        read_samples(config(path), tokenizer)
    assert len(read_samples(config(path, loss_on="all"), tokenizer).train) == 1
    path = write(tmp_path, [3])
    with pytest.raises(
        UserError, match=r"of 1 records 1 were bad \(such as .*x.jsonl:1 is not a JSON object but a number\)"
    ):
        read_samples(config(path, on_bad_record="skip"), tokenizer)


def test_chat_templates(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, [record(0)])
    own = read_samples(config(path), tokenizer).train
    assert key(read_samples(config(path, chat_template="stellarbyte"), tokenizer).train[0]) == key(own[0])
    (tmp_path / "t.jinja").write_text("{% generation %}{{ messages[1].content }}{% endgeneration %}")
    (sample,) = read_samples(config(path, chat_template=str(tmp_path / "t.jinja")), tokenizer).train
    assert tokenizer.decode(sample.input_ids) == "quick"
    with pytest.raises(
        UserError, match=r"data.chat_template nowhere.jinja cannot be read \(No such file or directory\)"
    ):
        read_samples(config(path, chat_template="nowhere.jinja"), tokenizer)


@pytest.mark.parametrize("packing", [False, True])
def test_a_trainer_takes_it_as_it_is(packing: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write(tmp_path, [record(number) for number in range(40)])
    prepared = prepare_data(config(path, packing=packing, validation_fraction=0.2), tokenizer)
    model = tiny_model(vocab_size=320, max_position_embeddings=128)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        **prepared.trainer_arguments,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=prepared.train,
        eval_dataset=prepared.validation,
        data_collator=prepared.collator,
    )
    lengths = [batch["input_ids"].shape[1] for batch in trainer.get_train_dataloader()]
    longest = -(-max(map(len, prepared.samples.train)) // 8) * 8
    if packing:
        assert set(lengths) == {128}
    else:  # batches of like lengths: the longest samples are in few of them
        assert max(lengths) == longest
        assert min(lengths) <= longest / 2
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
