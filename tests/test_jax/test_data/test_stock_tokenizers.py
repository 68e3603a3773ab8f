"""Tokenizers of stock models as they are, held against Transformers' own classes for them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data import documents, encoding_ahead
from stellarbyte_jax.data.chat_template import chat_template, chat_tokenizer
from stellarbyte_jax.data.packing import PackedRows
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.stream_decoder import StreamDecoder
from stellarbyte_jax.data.token_shards import TokenShards
from stellarbyte_jax.data.tokenizer import Tokenizer
from stock_tokenizers import STOCK, TEXTS, llama_2, llama_3, mistral, qwen_2

from .conftest import write_jsonl

NAMES = list(STOCK)
# Characters that no tokenizer changes: NFC writes others for some, and ▁ is SentencePiece's blank.
_LETTERS = st.characters(
    categories=["Lu", "Ll", "Nd", "Zs", "Po", "So"], max_codepoint=0xFFF, exclude_characters="\u037e\u0387"
)
TEXT = st.text(st.one_of(_LETTERS, st.sampled_from("床前明月光\U0001f600\n\t ae")), max_size=60)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp("stock") / name) for name, make in STOCK.items()}


@pytest.fixture(scope="module")
def ours(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: Tokenizer.load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path]) -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    return {name: transformers.AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}


def come_back(name: str, text: str) -> bool:
    """Whether the tokenizer is one that must give the text back."""
    return not (name == "mistral" and text.startswith(" "))


@pytest.mark.parametrize("name", NAMES)
def test_files_are_kept_byte_for_byte(folders: dict[str, Path], ours: dict[str, Tokenizer], name: str) -> None:
    there = {path.name: path.read_bytes() for path in folders[name].iterdir()}
    assert {file: text.encode() for file, text in ours[name].files.items()} == there


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=settings.default.max_examples // 4)
@given(text=TEXT)
def test_ids_and_texts_are_those_of_transformers(
    ours: dict[str, Tokenizer], theirs: dict[str, Any], name: str, text: str
) -> None:
    ids = ours[name].encode(text)
    backend = theirs[name].backend_tokenizer
    if name != "llama-2" or not text.startswith(" "):  # Transformers 5 takes Metaspace for the normalizer there
        assert ids == theirs[name](text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert ours[name].decode(ids) == backend.decode(ids)
    assert ours[name].encode_batch([text])[0].tolist() == ids


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=settings.default.max_examples // 4)
@given(text=TEXT)
def test_the_lengths_of_a_documents_tokens_are_its_bytes(ours: dict[str, Tokenizer], name: str, text: str) -> None:
    tokenizer = ours[name]
    if text and come_back(name, text):
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text), tokenizer.eos_token_id]
        assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=settings.default.max_examples // 4)
@given(content=st.binary(max_size=40))
def test_bytes_come_back_and_stream(ours: dict[str, Tokenizer], name: str, content: bytes) -> None:
    tokenizer = ours[name]
    ids = tokenizer.encode(content)
    decoder, going_on = StreamDecoder(tokenizer), StreamDecoder(tokenizer, continues=True)
    assert "".join([*map(decoder.push, ids), decoder.finish()]) == tokenizer.decode(ids)
    streamed = "".join([*map(going_on.push, ids), going_on.finish()])
    assert streamed == tokenizer.decode_bytes(ids, continues=True).decode("utf-8", "replace")
    text = content.decode("utf-8", "replace")
    if name in ("llama-3", "llama-2") and "▁" not in text:
        assert tokenizer.decode_bytes(ids) == content


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_written_in_a_text_are_text(ours: dict[str, Tokenizer], name: str) -> None:
    tokenizer = ours[name]
    for token in tokenizer._special_tokens:
        ids = tokenizer.encode(f"a{token}b")
        assert not tokenizer.special_ids & set(ids)
        assert tokenizer.decode(ids) == f"a{token}b"


def token(tokenizer: Tokenizer, token_id: int) -> str | None:
    return tokenizer._tokenizer.id_to_token(token_id)


def test_the_tokens_around_documents(ours: dict[str, Tokenizer]) -> None:
    around = {name: [token(tokenizer, i) for i in tokenizer.document_ids] for name, tokenizer in ours.items()}
    assert around == {
        "llama-3": ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_1|>"],
        "qwen-2": ["<|endoftext|>", "<|endoftext|>", None],  # no bos, and no token free: the first row behind
        "llama-2": ["<s>", "</s>", "<unk>"],
        "mistral": ["<s>", "</s>", "<unk>"],
    }
    qwen = ours["qwen-2"]
    assert qwen.pad_token_id == qwen.vocab_size - 1 == len(qwen._tokenizer.get_vocab())
    with pytest.raises(UserError, match=f"model.vocab_size {qwen.pad_token_id} is smaller than the {qwen.vocab_size}"):
        qwen.check_fits(qwen.pad_token_id)
    assert [tokenizer.adds_bos for tokenizer in ours.values()] == [True, False, True, True]


def changed(folder: Path, output: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """The tokenizer with another tokenizer.json and another tokenizer_config.json."""
    files = [json.loads((folder / name).read_text("utf-8")) for name in ("tokenizer.json", "tokenizer_config.json")]
    change(*files)
    output.mkdir()
    for name, content in zip(("tokenizer.json", "tokenizer_config.json"), files, strict=True):
        (output / name).write_text(json.dumps(content), "utf-8")
    return output


class TestSpecialTokens:
    def test_a_pad_token_of_its_own_is_taken(self, folders: dict[str, Path], tmp_path: Path) -> None:
        folder = changed(
            folders["qwen-2"], tmp_path / "a", lambda _, settings: settings.update(eos_token={"content": "<|im_end|>"})
        )
        tokenizer = Tokenizer.load(folder)
        assert [token(tokenizer, i) for i in tokenizer.document_ids] == ["<|im_end|>", "<|im_end|>", "<|endoftext|>"]

    def test_a_token_that_is_named_pad_is_preferred(self, folders: dict[str, Path], tmp_path: Path) -> None:
        folder = tmp_path / "a"
        folder.mkdir()
        backend = tokenizers.Tokenizer.from_file(str(folders["llama-3"] / "tokenizer.json"))
        backend.add_special_tokens(["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>"])
        backend.save(str(folder / "tokenizer.json"))
        names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
        (folder / "special_tokens_map.json").write_text(json.dumps(names), "utf-8")
        tokenizer = Tokenizer.load(folder)
        assert token(tokenizer, tokenizer.pad_token_id) == "<|finetune_right_pad_id|>"
        assert tokenizer.files.keys() == {"tokenizer.json", "special_tokens_map.json"}

    def test_a_name_that_is_no_special_token_is_refused(self, folders: dict[str, Path], tmp_path: Path) -> None:
        folder = changed(folders["qwen-2"], tmp_path / "a", lambda _, settings: settings.update(pad_token="[PAD]"))
        with pytest.raises(UserError, match=r"names '\[PAD\]' as its pad_token, which is no special token"):
            Tokenizer.load(folder)

    def test_a_text_that_could_end_itself_is_refused(self, folders: dict[str, Path], tmp_path: Path) -> None:
        def forge(content: dict[str, Any], _: dict[str, Any]) -> None:
            content["model"]["ignore_merges"] = True
            content["pre_tokenizer"] = {**content["pre_tokenizer"]["pretokenizers"][1]}
            content["model"]["vocab"] |= {token["content"]: token["id"] for token in content["added_tokens"]}

        with pytest.raises(UserError, match=r"makes the special token '<\|begin_of_text\|>' of a text"):
            Tokenizer.load(changed(folders["llama-3"], tmp_path / "a", forge))

    def test_templates_see_what_the_tokenizer_names(self, ours: dict[str, Tokenizer]) -> None:
        assert chat_tokenizer(ours["qwen-2"], None).special_tokens == {
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        }
        assert chat_template(ours["llama-3"], None).startswith("{{ bos_token }}")
        assert ours["mistral"].special_tokens["bos_token"] == "<s>"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("byte_fallback", "has no bytes to fall back to"),
        ("replacement", "writes a blank as '_'"),
        ("added", "puts a blank behind it as before a text"),
        ("bytes", "lacks some of the 256 bytes"),
    ],
)
def test_sentencepiece_that_would_lose_text_is_refused(
    folders: dict[str, Path], tmp_path: Path, name: str, complaint: str
) -> None:
    def change(content: dict[str, Any], _: dict[str, Any]) -> None:
        if name == "byte_fallback":
            content["model"]["byte_fallback"] = False
        elif name == "replacement":
            content["pre_tokenizer"]["replacement"] = "_"
        elif name == "added":
            content["added_tokens"].append(content["added_tokens"][0] | {"id": 438, "content": "<x>", "special": False})
        else:
            vocab = content["model"]["vocab"]
            vocab["<0x0G>"] = vocab.pop("<0x0A>")

    with pytest.raises(UserError, match=complaint):
        Tokenizer.load(changed(folders["mistral"], tmp_path / "a", change))


def prepared(folder: Path, texts: list[str], report: Callable[[str], None] = lambda _: None) -> TokenShards:
    """The shards of these documents, by the tokenizer in folder/tokenizer."""
    write_jsonl(folder / "corpus.jsonl", texts)
    data = DataConfig(
        sources=(SourceConfig(str(folder / "corpus.jsonl")),),
        tokenizer=str(folder / "tokenizer"),
        shards=str(folder / "shards"),
        sequence_length=64,
        validation_fraction=0.0,
    )
    return TokenShards(folder / "shards", "train", prepare(data, report=report))


LONG = "First line of a text\nthen a second one of words " * 12


@pytest.mark.parametrize("make", [llama_3, qwen_2, llama_2, mistral])
def test_documents_are_the_tokenizers_own_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path]
) -> None:
    # A long document is cut into pieces, which no blank may come between.
    monkeypatch.setattr(documents, "PIECE_CHARS", 150)
    monkeypatch.setattr(encoding_ahead, "BATCH_CHARS", 200)
    texts = [TEXTS[0], LONG, "a short one", "床前明月光\n使用Python\n" * 30]
    tokenizer = Tokenizer.load(make(tmp_path / "tokenizer"))
    told: list[str] = []
    shards = prepared(tmp_path, texts, told.append)
    assert [change for change in tokenizer.changes if not any(change in sentence for sentence in told)] == []
    expected = [[tokenizer.bos_token_id, *tokenizer.encode(text), tokenizer.eos_token_id] for text in texts]
    everything = [int(i) for ids in expected for i in ids]
    found = shards.read(0, shards.tokens).tolist()
    assert found == everything


def test_bits_per_byte_are_of_the_documents_bytes(tmp_path: Path) -> None:
    from stellarbyte_jax.training.evaluation import byte_lengths
    from stellarbyte_jax.training.step import text_bytes

    texts = ["a b", "the end", "x"]
    tokenizer = Tokenizer.load(llama_2(tmp_path / "tokenizer"))
    (row,) = PackedRows(prepared(tmp_path, texts), 64)
    batch = {name: values[None] for name, values in row.items()}
    assert int(text_bytes(byte_lengths(tokenizer, 500), batch)) == sum(len(text.encode()) for text in texts)
