"""A folder of sentence-transformers gives the vectors that the library gives, with its prompts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte.memory.embedders import open_embedder

sentence_transformers = pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.long

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "star", "byte", "query", "passage", ":"]
TEXTS = ["a star", "the byte the star", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("sentences")
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path / "bert")
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    BertModel(config).save_pretrained(path / "bert")
    transformer = Transformer(str(path / "bert"))
    prompts = {"query": "query : ", "document": "passage : "}
    sentence_transformers.SentenceTransformer(
        modules=[transformer, Pooling(16, "mean")], prompts=prompts, device="cpu"
    ).save(str(path / "model"))
    return path / "model"


def test_vectors_and_prompts(folder: Path) -> None:
    embedder: Any = open_embedder(folder, device="cpu")
    assert (embedder.name, embedder.size) == ("model", 16)
    library = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    documents, queries = embedder.embed(TEXTS), embedder.embed(TEXTS, queries=True)
    np.testing.assert_allclose(documents, library.encode(TEXTS, prompt="passage : "), atol=1e-6)
    np.testing.assert_allclose(queries, library.encode(TEXTS, prompt="query : "), atol=1e-6)
    assert np.abs(documents - queries).max() > 1e-3
    assert embedder.embed([]).shape == (0, 16) and documents.dtype == np.float32
    assert open_embedder(folder, device="cpu").hash == embedder.hash


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    for change, complaint in (
        ([], "holds a list, expected the list of modules"),
        ([{**modules[0], "type": "os.system"}], "has a module of type 'os.system', which is none of"),
        ([{**modules[0], "path": "../x"}], "names the file '../x', expected a plain file name"),
        ([{**modules[0], "path": 3}], "has a module in 3, expected a folder's name"),
        ([{**modules[0], "path": "gone"}], "holds no sentence-transformers model that can be loaded"),
    ):
        (tmp_path / "modules.json").write_text(json.dumps(change))
        with pytest.raises(UserError, match=complaint):
            open_embedder(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps(modules[:1]))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"has its weights in pytorch_model\.bin, a pickle"):
        open_embedder(tmp_path)
