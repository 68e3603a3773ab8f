"""Any causal model as embedder and judge: its own middle states, and its own loss."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stellarbyte.errors import UserError
from stellarbyte.memory.embedders import ModelEmbedder, open_embedder
from stellarbyte.memory.judges import ModelJudge
from stellarbyte_torch.memory.reader import TorchReader, open_reader, weights_hash

from ..chat_models import adapter_folders, chat_folder

TEXTS = ["hello", "the quick brown fox " * 60, "", "中文测试<|SEOS|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("memory") / "model", num_hidden_layers=3)


@pytest.mark.parametrize("kind", ["byte", "llama"])
def test_a_vector_is_the_mean_of_embeddings_and_middle_states(kind: str, tmp_path: Path) -> None:
    reader = open_reader(chat_folder(tmp_path / kind, kind, num_hidden_layers=4))
    assert reader.layer == 2
    vectors = ModelEmbedder(reader).embed(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = reader.tokens(text)
        parts = [ids[start : start + 511] for start in range(0, len(ids), 511)]
        states = [torch.zeros(0, reader.size)]
        for part in parts:
            with torch.no_grad():
                output = reader._model(torch.tensor([[*reader.begin, *part]]), output_hidden_states=True)
            first, middle = (output.hidden_states[layer][0, 1:] for layer in (0, 2))
            first, middle = (x / x.norm(dim=-1, keepdim=True) for x in (first, middle))
            states.append(first + middle / 2)
        weights = torch.tensor(ids, dtype=torch.float32).add(2).log()
        expected = (torch.cat(states) * weights[:, None]).sum(0) / weights.sum().clamp_min(1e-9)
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert not vectors[2].any() and vectors[0].any()


def test_special_tokens_in_a_text_stay_text(folder: Path) -> None:
    reader = open_reader(folder)
    assert len(reader.tokens("<|SEOS|>")) == 8
    assert open_embedder(folder).embed([]).shape == (0, reader.size)


def test_the_judges_loss_is_the_models(folder: Path) -> None:
    reader = open_reader(folder)
    judge = ModelJudge(reader)

    def expected(before: list[int], ids: list[int]) -> float:
        row = torch.tensor([[*before, *ids]])
        labels = torch.full_like(row, -100)
        labels[0, len(before) :] = row[0, len(before) :]
        with torch.no_grad():
            return float(reader._model(row, labels=labels).loss)

    text, given = reader.tokens("hello"), reader.tokens("what is said\n")
    assert judge.loss("hello", "") == pytest.approx(expected(reader.begin, text), rel=1e-5)
    assert judge.loss("hello", "what is said") == pytest.approx(expected([*reader.begin, *given], text), rel=1e-5)
    assert judge.loss("", "what is said") == 0.0
    # Of what is longer than the window, the end of what is given counts, and the begin of the text.
    long, short = reader.tokens("ab" * 900 + "\n"), reader.tokens("cd" * 900)[:256]
    found = judge.loss("cd" * 900, "ab" * 900)
    assert found == pytest.approx(expected([*reader.begin, *long[-255:]], short), rel=1e-5)


def test_a_model_without_a_first_token_is_judged_from_its_second_on(folder: Path) -> None:
    reader = open_reader(folder)
    reader.begin = []
    assert ModelJudge(reader).loss("x", "") == 0.0
    assert ModelJudge(reader).loss("xy", "") > 0.0


def test_adapters_change_no_vector(folder: Path, tmp_path: Path) -> None:
    from stellarbyte_torch.chat.session import open_session

    (adapter,) = adapter_folders(folder, tmp_path, ["terse"])
    session = open_session(folder, max_new_tokens=4)
    embedder = ModelEmbedder(session.reader("model", "hash"))
    before = embedder.embed(TEXTS)
    session.add_adapter("terse", adapter)
    session.use_adapter("terse")
    answer = session.answer("hello").text
    np.testing.assert_array_equal(embedder.embed(TEXTS), before)
    session.undo()
    assert (session.adapter, session.answer("hello").text) == ("terse", answer)


def test_the_hash_is_of_what_makes_the_vectors(folder: Path, tmp_path: Path) -> None:
    first = open_embedder(folder)
    assert first.hash == open_embedder(folder).hash
    other = chat_folder(tmp_path / "other", num_hidden_layers=3, initializer_range=0.5)
    assert open_embedder(other).hash != first.hash
    before = weights_hash(other)
    (other / "generation_config.json").write_text("{}")
    assert weights_hash(other) == before
    config = other / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps"', '"rms_norm_eps" '))
    assert weights_hash(other) != before


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not there: name a folder"):
        open_embedder(tmp_path / "nowhere")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    with pytest.raises(UserError, match="tokenizer is a tokenizer, and what turns texts into vectors is a run, a"):
        open_embedder(tmp_path / "tokenizer")
    reader = open_reader(folder)
    reader._model.model.layers = torch.nn.ModuleList(reader._model.model.layers[:1])
    with pytest.raises(UserError, match="ByteForCausalLM has no list of 3 layers"):
        TorchReader(reader._model, reader._tokenizer, "x", "y")


def test_a_model_that_came_with_adapters(folder: Path, tmp_path: Path) -> None:
    """PEFT's own wrapper around a model: the base's vectors all the same."""
    from peft import PeftModel

    from stellarbyte_torch.chat.session import TorchChatSession
    from stellarbyte_torch.model_folder import load_model, load_tokenizer

    (adapter,) = adapter_folders(folder, tmp_path, ["terse"])
    model = PeftModel.from_pretrained(load_model(folder, "cpu"), adapter).eval()
    session = TorchChatSession(model, load_tokenizer(folder), max_new_tokens=4)
    vectors = ModelEmbedder(session.reader("model", "hash")).embed(TEXTS)
    np.testing.assert_allclose(vectors, open_embedder(folder, "cpu").embed(TEXTS), atol=1e-6)
    assert session.adapter == "default"
