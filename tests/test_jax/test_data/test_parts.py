"""Parts in any order, some interrupted, merge into what one job writes, to the last byte."""

import gzip
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig, RunConfig, SourceConfig
from stellarbyte_jax.config_file import save_config
from stellarbyte_jax.data import merging
from stellarbyte_jax.data.parts import Part, merge, prepare_part
from stellarbyte_jax.data.prepare import PrepareProgress, prepare
from tiers import short_tier

from .conftest import write_jsonl

pytestmark = pytest.mark.usefixtures("small_steps")


@pytest.fixture(autouse=True)
def small_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_TOKENS_AT_ONCE", 90)


def corpus(folder: Path) -> tuple[SourceConfig, ...]:
    """Files that can be split and files that cannot, with bad records, empty ones and lines of all ends."""
    (folder / "b").mkdir(parents=True)
    lines = [f'{{"text": "document {n} of the first file"}}' if n % 7 else f"bad {n}" for n in range(40)]
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\n\n")
    (folder / "b" / "long.txt").write_text("a long text of many words, line by line\n" * 30)
    (folder / "b" / "empty.ndjson").write_text("")
    write_jsonl(folder / "b" / "last.ndjson", [f"short {n}" if n % 5 else "" for n in range(30)])
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[::-1]).encode()))
    (folder / "d.jsonl").write_bytes(("{}\n" * 3).encode("utf-16"))  # one bad record, however it is split
    return tuple(SourceConfig(str(folder / name)) for name in ("a.jsonl", "b", "c.jsonl.gz", "d.jsonl"))


def configure(folder: Path, tokenizer: Path, sources: Sequence[SourceConfig], **settings: object) -> DataConfig:
    defaults = {"validation_fraction": 0.3, "tokens_per_shard": 101, "on_bad_record": "skip"}
    return DataConfig(tuple(sources), str(tokenizer), str(folder / "parted"), **(defaults | settings))  # type: ignore[arg-type]


def contents(folder: str) -> dict[str, bytes]:
    assert {path.name for path in Path(folder).iterdir() if path.is_dir()} == set()
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


class Stop(Exception):
    pass


def stopping(after: int):
    calls = 0

    def stop(_: PrepareProgress) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise Stop

    return stop


def in_parts(data: DataConfig, count: int, order: Sequence[int], stop: int) -> None:
    """Every part is interrupted once, if it is long enough, and so is the merge."""
    for number in order:
        for progress in (stopping(stop), None):
            try:
                prepare_part(data, Part(number, count), progress, lambda _: None)
            except Stop:
                continue
            break
    for progress in (stopping(stop), stopping(2 * stop), None):
        try:
            merge(data, count, progress, lambda _: None)
        except Stop:
            continue
        break


def check_same(data: DataConfig, count: int, seed: int = 0, stop: int = 2) -> None:
    whole = replace(data, shards=data.shards + "-whole")
    if not Path(whole.shards).exists():
        prepare(whole, report=lambda _: None)
    in_parts(data, count, random.Random(seed).sample(range(1, count + 1), count), stop)
    assert contents(data.shards) == contents(whole.shards)


@pytest.mark.parametrize("count", short_tier([1, 4, 40], 1))
def test_parts_in_any_order_are_one_job(tmp_path: Path, tokenizer_folder: Path, count: int) -> None:
    """With bad records counted once and named by their lines, and the validation split."""
    check_same(configure(tmp_path, tokenizer_folder, corpus(tmp_path)), count, seed=1)


@pytest.mark.long
@given(
    count=st.integers(1, 9),
    seed=st.integers(0, 99),
    stop=st.integers(1, 6),
    tokens_per_shard=st.sampled_from([101, 5000]),
    fraction=st.sampled_from([0.0, 1e-9, 0.3, 0.999999]),
)
@settings(max_examples=settings.default.max_examples // 16)
def test_parts_in_any_order_with_interruptions_are_one_job(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer_folder: Path,
    count: int,
    seed: int,
    stop: int,
    tokens_per_shard: int,
    fraction: float,
) -> None:
    """Also with the rule for a split that stays empty, and shards that are cut elsewhere."""
    folder = tmp_path_factory.mktemp("parts")
    sources = corpus(folder)
    data = configure(folder, tokenizer_folder, sources, tokens_per_shard=tokens_per_shard, validation_fraction=fraction)
    check_same(data, count, seed, stop)


@pytest.mark.parametrize("count", short_tier([2, 5], 1))
def test_passages_are_those_of_one_job(tmp_path: Path, tokenizer_folder: Path, count: int) -> None:
    texts = [f"{n} words of a text that goes on and on, line by line\n" * 80 for n in range(3)]
    write_jsonl(tmp_path / "few.jsonl", texts)
    data = configure(tmp_path, tokenizer_folder, [SourceConfig(str(tmp_path / "few.jsonl"))])
    check_same(data, count)
    assert json.loads((Path(data.shards) / "manifest.json").read_text())["recipe"]["passages"]


def test_conversations_are_those_of_one_job(tmp_path: Path, tokenizer_folder: Path) -> None:
    records = [{"prompt": f"how much is {n}?", "completion": f"{n} is {n}" * (1 + n % 4)} for n in range(30)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    source = SourceConfig(str(tmp_path / "chat.jsonl"))
    settings = {"kind": "chat", "chat_template": "stellarbyte", "sequence_length": 48}
    check_same(configure(tmp_path, tokenizer_folder, [source], **settings), 4)


@pytest.fixture
def data(tmp_path: Path, tokenizer_folder: Path) -> DataConfig:
    return configure(tmp_path, tokenizer_folder, corpus(tmp_path))


def all_parts(data: DataConfig, count: int) -> None:
    for number in range(1, count + 1):
        prepare_part(data, Part(number, count), report=lambda _: None)


def test_one_file_is_split_into_equal_shares(tmp_path: Path) -> None:
    files = [(0, tmp_path / "one.jsonl"), (0, tmp_path / "two.parquet"), (1, tmp_path / "three.jsonl")]
    sizes = [1000, 50, 150]
    shares = [list(Part(number, 4).work(files, sizes)) for number in range(1, 5)]
    assert [[(index, file.span) for index, file in share] for share in shares] == [
        [(0, range(0, 300))],
        [(0, range(300, 600))],
        [(0, range(600, 900))],
        [(0, range(900, 1000)), (1, None), (2, None)],
    ]


def test_a_bad_record_in_the_middle_is_named_by_its_line(tmp_path: Path, tokenizer_folder: Path) -> None:
    lines = [json.dumps({"text": f"document {n}"}) for n in range(60)]
    lines[44] = "bad"
    (tmp_path / "one.jsonl").write_text("\n".join(lines))
    data = configure(tmp_path, tokenizer_folder, [SourceConfig(str(tmp_path / "one.jsonl"))], on_bad_record="fail")
    with pytest.raises(UserError, match=r"one.jsonl:45 is not valid JSON"):
        all_parts(data, 4)
    data = replace(data, on_bad_record="skip")
    told: list[str] = []
    prepare_part(data, Part(3, 4), report=told.append)
    assert "one.jsonl:45 is not valid JSON" in told[0]


def test_missing_parts_are_named(data: DataConfig) -> None:
    with pytest.raises(UserError, match=r"lacks 3 of 3 parts, or they are unfinished \(1/3, 2/3, 3/3\)"):
        merge(data, 3)
    all_parts(data, 3)
    with pytest.raises(UserError, match=r"lacks 4 of 4 parts"):
        merge(data, 4)
    (Part(2, 3).folder(Path(data.shards)) / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 3 parts, .* \(2/3\): make them with --part 2/3"):
        merge(data, 3)
    with pytest.raises(UserError, match="holds parts of these token shards: merge them with --merge"):
        prepare(data)


def test_foreign_parts_are_refused(data: DataConfig) -> None:
    all_parts(data, 3)
    shards = Path(data.shards)
    two, three = (Part(number, 3).folder(shards) for number in (2, 3))
    two.rename(shards / "aside")
    three.rename(two)
    (shards / "aside").rename(three)
    with pytest.raises(UserError, match=r"00002-of-00003 does not hold part 2/3: delete it, and make it with"):
        merge(data, 3)
    two.rename(shards / "aside")
    three.rename(two)
    (shards / "aside").rename(three)
    complaint = r"00001-of-00003 was made of something else \(validation_fraction is 0.1, not 0.3"
    with pytest.raises(UserError, match=complaint):
        merge(replace(data, validation_fraction=0.1), 3)
    with pytest.raises(UserError, match="holds token shards made of something else"):
        prepare_part(replace(data, validation_fraction=0.1), Part(1, 3))


def test_a_source_that_changed_between_parts_is_seen(data: DataConfig) -> None:
    prepare_part(data, Part(1, 2), report=lambda _: None)
    path = Path(data.sources[0].path)
    path.write_bytes(path.read_bytes().replace(b"first", b"other"))
    prepare_part(data, Part(2, 2), report=lambda _: None)
    with pytest.raises(UserError, match=r"00001-of-00002 was made of something else \(.*a.jsonl had another"):
        merge(data, 2)


def test_a_damaged_part_is_seen(data: DataConfig) -> None:
    all_parts(data, 2)
    shard = Part(1, 2).folder(Path(data.shards)) / "train-00000.npy"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000.npy is damaged"):
        merge(data, 2)


def test_a_finished_part_and_a_finished_whole_are_left_alone(data: DataConfig) -> None:
    all_parts(data, 2)
    before = Part(1, 2).folder(Path(data.shards)).stat().st_mtime_ns
    assert prepare_part(data, Part(1, 2)).part is not None
    assert Part(1, 2).folder(Path(data.shards)).stat().st_mtime_ns == before
    manifest = merge(data, 2, report=lambda _: None)
    assert merge(data, 2) == prepare(data) == prepare_part(data, Part(1, 2)) == manifest


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "1/0", "-1/4", "1/4/5", ""])
def test_what_names_no_part_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="names no part: write 3/64 for the third of 64"):
        Part.parse(text)


@pytest.mark.long
def test_parts_at_the_same_time_do_not_disturb_each_other(data: DataConfig) -> None:
    """One part is made while another is being made; only the same part is kept out."""
    others = iter([2, 3])

    def meanwhile(_: PrepareProgress) -> None:
        number = next(others, None)
        if number is not None:
            prepare_part(data, Part(number, 3), report=lambda _: None)
        else:
            with pytest.raises(UserError, match="prepare --part 1/3"):
                prepare_part(data, Part(1, 3))

    prepare_part(data, Part(1, 3), meanwhile, lambda _: None)
    merge(data, 3, report=lambda _: None)


def test_the_commands(run_config: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_config()
    save_config(replace(config, data=replace(config.data, shards=str(tmp_path / "shards"))), tmp_path / "run.yaml")
    for part in ("2/2", "1/2"):
        assert main(["prepare", str(tmp_path / "run.yaml"), "--part", part]) == 0
    assert f"token shards in {tmp_path}/shards/parts/00001-of-00002" in capsys.readouterr().out
    assert main(["prepare", str(tmp_path / "run.yaml"), "--merge", "2"]) == 0
    assert f"token shards in {tmp_path}/shards\n" in capsys.readouterr().out
    prepare(replace(config.data, shards=str(tmp_path / "whole")), report=lambda _: None)
    assert contents(str(tmp_path / "shards")) == contents(str(tmp_path / "whole"))
    for wrong, sentence in ((["--part", "3/2"], "names no part"), (["--merge", "0"], "is no number of parts")):
        assert main(["prepare", str(tmp_path / "run.yaml"), *wrong]) == 2
        assert sentence in capsys.readouterr().err
