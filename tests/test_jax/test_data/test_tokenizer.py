import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from stellarbyte.errors import UserError
from stellarbyte_jax.data import tokenizer_training
from stellarbyte_jax.data.stream_decoder import StreamDecoder
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.data.tokenizer_training import train_tokenizer

from .conftest import TEXTS

CHAT = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Good\nday"},
    {"role": "user", "content": "So?"},
]


def ids_as_text(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([token_id]) for token_id in tokenizer.encode(text)]


def test_special_tokens_come_first_and_stand_for_no_bytes(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert tokenizer.vocab_size == 320
    assert tokenizer.byte_lengths.shape == (320,)
    assert tokenizer.byte_lengths.dtype == np.int32
    assert list(tokenizer.byte_lengths[:4]) == [0, 0, 0, 0]  # the fourth is the extra one
    assert (tokenizer.byte_lengths[4:] > 0).all()
    assert tokenizer.decode([0, *tokenizer.encode("the end"), 1, 2, 3]) == "the end"


def test_ids_beyond_the_vocabulary_stand_for_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([320, 4000, *tokenizer.encode("ok")]) == "ok"


@given(data=st.binary(max_size=200))
def test_any_bytes_round_trip(tokenizer: Tokenizer, data: bytes) -> None:
    ids = tokenizer.encode(data)
    assert tokenizer.decode_bytes(ids) == data
    assert int(tokenizer.byte_lengths[ids].sum()) == len(data)


@given(text=st.text(max_size=200))
def test_any_text_round_trips_and_is_its_bytes(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids == tokenizer.encode(text.encode())
    assert [list(row) for row in tokenizer.encode_batch([text, text])] == [ids, ids]


def test_a_byte_that_is_not_utf8_is_one_token(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(b"\xff\xfe\xc3")) == 3
    assert tokenizer.decode(tokenizer.encode(b"a\xffb")) == "a\ufffdb"
    # So the operating system hands over arguments that are not UTF-8.
    assert tokenizer.decode_bytes(tokenizer.encode(b"a\xffb".decode("utf-8", "surrogateescape"))) == b"a\xffb"


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"lone surrogate U\+D83D"):
        tokenizer.encode("a\ud83db")


def test_batches_may_be_empty_or_hold_empty_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_batch([]) == []
    lengths = [len(row) for row in tokenizer.encode_batch(["", "the", ""])]
    assert lengths == [0, len(tokenizer.encode("the")), 0]


@pytest.mark.parametrize("name", ["<|SBOS|>", "<|SEOS|>", "<|PAD|>", "<|TOOL|>"])
def test_a_special_token_written_in_a_text_is_text(tokenizer: Tokenizer, name: str) -> None:
    for ids in (tokenizer.encode(f"a {name} b"), list(tokenizer.encode_batch([f"a {name} b"])[0])):
        assert min(ids) > 3
        assert tokenizer.decode(ids) == f"a {name} b"


def test_merges_cross_no_border_of_the_pattern(tmp_path: Path) -> None:
    text = "def f(self, x=12345):\n        return 'text', it's, 使用Python代码 "
    tokenizer = train_tokenizer([text * 50], 1000, tmp_path, report=lambda _: None, pattern="stellarbyte")
    assert ids_as_text(tokenizer, text) == [
        *("def", " f", "(self", ",", " x", "=", "123", "45", "):\n", "       ", " return", " '", "text"),
        *("',", " it", "'s", ",", " ", "使用", "Python", "代码", " "),
    ]


def test_a_sign_or_space_joins_the_chinese_word_behind_it(tmp_path: Path) -> None:
    text = "这是, 一句。\n“好的，Web 服务。\n\n"  # noqa: RUF001 - full-width is meant
    tokenizer = train_tokenizer([text * 50], 1000, tmp_path, report=lambda _: None, pattern="stellarbyte")
    assert ids_as_text(tokenizer, text) == [
        *("这是", ",", " ", "一句", "。\n", "“好的", "，Web", " 服务", "。\n\n"),  # noqa: RUF001 - full-width is meant
    ]


UNBROKEN = {
    "letters": "abcdefgh" * 200,
    "Chinese": "床前明月光" * 300,
    "signs": "-=#" * 400,
    "spaces": " " * 1000 + "x",
    "line ends": "\n" * 1000,
    "a long line and its end": "x" * 1000 + "\n" + " " * 600 + "y",
}


@pytest.mark.parametrize("name", UNBROKEN)
def test_the_trainer_gets_no_long_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    # A merge goes through each word that it changes: one word of a million characters would take hours.
    longest = 0
    learn = tokenizer_training._train

    def watched(tokenizer: tokenizers.Tokenizer, *arguments: Any) -> None:
        nonlocal longest
        words = tokenizer.pre_tokenizer.pre_tokenize_str(UNBROKEN[name])
        longest = max(stop - start for _, (start, stop) in words)
        learn(tokenizer, *arguments)

    monkeypatch.setattr(tokenizer_training, "_train", watched)
    tokenizer = train_tokenizer([UNBROKEN[name]], 280, tmp_path, report=lambda _: None)
    assert 0 < longest <= 2 * 256 + 2
    assert tokenizer.decode(tokenizer.encode(UNBROKEN[name])) == UNBROKEN[name]


def test_the_bound_on_words_leaves_usual_texts_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded = train_tokenizer(TEXTS, 400, tmp_path / "bounded", report=lambda _: None)
    monkeypatch.setattr(tokenizer_training, "_LONGEST_WORD", None)
    whole = train_tokenizer(TEXTS, 400, tmp_path / "whole", report=lambda _: None)
    assert bounded.files == whole.files


def test_an_interrupted_training_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            if read == 100:
                signal.raise_signal(signal.SIGINT)
            yield "an endless text"

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(texts(), 300, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_smaller_than_bytes_and_special_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="vocab_size 259 is smaller than the 256 bytes and 4 special tokens: use at least 260"
    ):
        train_tokenizer(["text"], 259, tmp_path, ["<|TOOL|>"])
    assert train_tokenizer(["text"], 260, tmp_path, ["<|TOOL|>"]).vocab_size == 260


@pytest.mark.parametrize("name", ["word", " ", "Ġ", "", "<|PAD|>"])
def test_an_unfit_special_token_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="extra_special_tokens"):
        train_tokenizer(["text"], 300, tmp_path, [name])


def test_training_on_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty corpus"):
        train_tokenizer([], 300, tmp_path)


def test_a_source_that_fails_fails_the_training(tmp_path: Path) -> None:
    def texts() -> Iterator[str]:
        yield "text"
        raise UserError("corpus.jsonl:2 is bad")

    with pytest.raises(UserError, match=r"corpus.jsonl:2 is bad"):
        train_tokenizer(texts(), 300, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_corpus_too_small_for_the_vocabulary_is_reported(tmp_path: Path) -> None:
    told: list[str] = []
    tokenizer = train_tokenizer(["abab"], 5000, tmp_path, report=told.append)
    assert tokenizer.vocab_size < 5000
    assert len(told) == 1
    assert f"vocab_size 5000: it gave {tokenizer.vocab_size} tokens" in told[0]
    tokenizer.check_fits(5000)


def test_a_model_with_too_small_a_vocabulary_is_refused(tokenizer: Tokenizer) -> None:
    tokenizer.check_fits(320)
    with pytest.raises(UserError, match=r"model.vocab_size 319 is smaller than the 320 tokens"):
        tokenizer.check_fits(319)


def test_saved_files_are_the_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    Tokenizer.save_files(tokenizer.files, tmp_path / "copy")
    copy = Tokenizer.load(tmp_path / "copy")
    assert (copy.files, copy.sha256) == (tokenizer.files, tokenizer.sha256)
    assert copy.encode("the end") == tokenizer.encode("the end")


@pytest.mark.parametrize("content", [None, "{", "{}", '{"model": {"type": "BPE", "vocab": {}, "merges": []}}'])
def test_a_folder_without_a_tokenizer_of_ours_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="tokenizer"):
        Tokenizer.load(tmp_path)


@given(data=st.binary(max_size=60))
def test_streaming_gives_the_same_text(tokenizer: Tokenizer, data: bytes) -> None:
    ids = tokenizer.encode(data)
    decoder = StreamDecoder(tokenizer)
    assert "".join([*map(decoder.push, ids), decoder.finish()]) == tokenizer.decode(ids)


def test_streaming_holds_back_half_a_character(tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tokenizer)
    pushed = [decoder.push(token_id) for token_id in tokenizer.encode(b"\xe5\xba") + tokenizer.encode(b"\x8a.")]
    assert "".join(pushed) == "床."
    assert pushed[0] == ""
    decoder.push(tokenizer.encode(b"\xe5")[0])
    assert decoder.finish() == "\ufffd"


class TestInTransformers:
    @pytest.fixture(scope="class")
    def theirs(self, tokenizer_folder: Path):
        return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tokenizer_folder)

    @given(text=st.text(max_size=100))
    def test_text_becomes_the_same_ids(self, tokenizer: Tokenizer, theirs, text: str) -> None:
        ids = tokenizer.encode(text)
        assert theirs(text, split_special_tokens=True).input_ids == ids
        if "<|" not in text:  # theirs takes a special token written in a text for the token, as chat templates need
            assert theirs(text).input_ids == ids
        assert theirs.decode(ids) == text

    def test_it_knows_the_special_tokens(self, tokenizer: Tokenizer, theirs) -> None:
        assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
        assert len(theirs) == tokenizer.vocab_size
        assert set(theirs.all_special_tokens) == {"<|SBOS|>", "<|SEOS|>", "<|PAD|>", "<|TOOL|>"}
        assert list(theirs("text")) == ["input_ids", "attention_mask"]
        text = "a <|SEOS|> b"
        assert theirs(text, split_special_tokens=True).input_ids == tokenizer.encode(text)

    def test_chat(self, theirs) -> None:
        assert theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == (
            "<|SBOS|>user\nHello<|SEOS|><|SBOS|>assistant\nGood\nday<|SEOS|><|SBOS|>user\nSo?<|SEOS|><|SBOS|>assistant\n"
        )
        chat = theirs.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
        answer = [i for i, mask in zip(chat["input_ids"], chat["assistant_masks"], strict=True) if mask]
        assert theirs.decode(answer) == "Good\nday<|SEOS|>"


def test_importing_the_tokenizer_loads_no_transformers() -> None:
    code = (
        "import stellarbyte_jax.data.tokenizer, sys; sys.exit('transformers' in sys.modules or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def with_added(folder: Path, output: Path, token: tokenizers.AddedToken) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    output.mkdir()
    backend.save(str(output / "tokenizer.json"))
    return Tokenizer.load(output)


def test_an_added_token_stands_for_its_own_text(tokenizer_folder: Path, tmp_path: Path) -> None:
    ours = with_added(tokenizer_folder, tmp_path / "a", tokenizers.AddedToken("<tool é>", special=False))
    text = "a <tool é> b"
    ids = ours.encode(text)
    assert ids.count(ours.vocab_size - 1) == 1
    assert ours.decode(ids) == text
    assert ours.byte_lengths[ids].sum() == len(text.encode())


def test_an_added_special_token_stands_for_none(tokenizer_folder: Path, tmp_path: Path) -> None:
    ours = with_added(tokenizer_folder, tmp_path / "a", tokenizers.AddedToken("<|tool|>", special=True))
    assert ours.decode([ours.vocab_size - 1]) == ""
    assert ours.vocab_size - 1 not in ours.encode("<|tool|>")


def test_an_added_token_that_takes_blanks_away_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"added token '<tool>', which takes away blanks"):
        with_added(tokenizer_folder, tmp_path / "a", tokenizers.AddedToken("<tool>", lstrip=True, special=False))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"version": "1.0"}', "\ufeff{}"])
def test_a_broken_tokenizer_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, "utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json is (not a tokenizer|not valid JSON|nested)"):
        Tokenizer.load(tmp_path)


_SPLIT = {"type": "Split", "pattern": {"Regex": " "}, "behavior": "Isolated", "invert": False}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _sequence(step: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [step, _BYTES]}


@pytest.mark.parametrize(
    ("part", "value", "complaint"),
    [
        ("normalizer", {"type": "Lowercase"}, "has the normalizer 'Lowercase', which changes texts"),
        ("normalizer", {"type": "Prepend", "prepend": "▁"}, "has the normalizer 'Prepend', which changes texts"),
        ("pre_tokenizer", None, "does not split texts into bytes"),
        ("pre_tokenizer", _SPLIT, "does not split texts into bytes"),
        (
            "pre_tokenizer",
            _sequence(_SPLIT | {"behavior": "Removed"}),
            r"drops parts of texts \(pre_tokenizer 'Split'\)",
        ),
        ("pre_tokenizer", _sequence({"type": "WhitespaceSplit"}), r"drops parts of texts"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}, "puts a blank before"),
        ("model.dropout", 0.5, "drops merges at random"),
        ("model.end_of_word_suffix", "</w>", "marks words"),
        ("model.vocab.zzz", 2**24, "expected 0 to 16777215"),
        ("added_tokens", [], r"names no token that ends a document"),
    ],
)
def test_texts_that_would_not_come_back_are_refused(
    tokenizer_folder: Path, tmp_path: Path, part: str, value: Any, complaint: str
) -> None:
    content = json.loads((tokenizer_folder / "tokenizer.json").read_text("utf-8"))
    *above, last = part.split(".")
    inner = content
    for key in above:
        inner = inner[key]
    inner[last] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(UserError, match=complaint):
        Tokenizer.load(tmp_path)


def test_a_checkpoint_without_a_tokenizer() -> None:
    with pytest.raises(UserError, match=r"of the run/tokenizer\.json is missing"):
        Tokenizer({}, "of the run")


def test_texts_are_neither_cut_nor_padded(tokenizer_folder: Path, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "as it stands, " * 20
    assert Tokenizer.load(tmp_path).encode(text) == Tokenizer.load(tokenizer_folder).encode(text)


@pytest.mark.parametrize("settings", ["", "[]", '"x"', '{"a": 1} {"b": 2}', "[" * 100_000])
def test_settings_that_an_export_would_stumble_on_are_refused_at_once(
    tokenizer_folder: Path, tmp_path: Path, settings: str
) -> None:
    files = {**Tokenizer.load(tokenizer_folder).files, "tokenizer_config.json": settings}
    Tokenizer.save_files(files, tmp_path)
    with pytest.raises(UserError, match=r"tokenizer_config\.json (is not valid JSON|is nested|holds)"):
        Tokenizer.load(tmp_path)


class TestAnEarlierTokenizer:
    """Token shards and runs may stand on it."""

    def test_the_same_one_is_left_alone_and_said_so(self, tmp_path: Path) -> None:
        train_tokenizer(["abab"], 300, tmp_path, report=lambda _: None)
        before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        told: list[str] = []
        assert train_tokenizer(["abab"], 300, tmp_path, report=told.append).vocab_size < 300
        assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
        assert "holds this very tokenizer already" in told[-1]

    def test_another_one_is_replaced_by_force_alone(self, tmp_path: Path) -> None:
        first = train_tokenizer(["abab"], 300, tmp_path, report=lambda _: None)
        with pytest.raises(UserError, match=r"holds another tokenizer .*another folder, or use --force"):
            train_tokenizer(["cdcd"], 300, tmp_path, report=lambda _: None)
        assert Tokenizer.load(tmp_path).files == first.files
        second = train_tokenizer(["cdcd"], 300, tmp_path, report=lambda _: None, force=True)
        assert Tokenizer.load(tmp_path).files == second.files != first.files

    @pytest.mark.parametrize("limit", [0, 2000])
    def test_a_full_disk_leaves_it_whole(self, tmp_path: Path, limit: int) -> None:
        first = train_tokenizer(["abab"], 300, tmp_path, report=lambda _: None)
        allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, allowed[1]))
            with pytest.raises(UserError, match=r"cannot be written: File too large"):
                train_tokenizer(["cdcd" * 100], 400, tmp_path, report=lambda _: None, force=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
            signal.signal(signal.SIGXFSZ, handler)
        assert Tokenizer.load(tmp_path).files == first.files
        assert len(list(tmp_path.iterdir())) == len(first.files)
