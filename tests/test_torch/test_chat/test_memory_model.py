"""A model that looks things up: the chat's own prompt and answer, from Python."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from stellarbyte import MemoryModel
from stellarbyte.errors import UserError
from stellarbyte.memory import Memory
from stellarbyte.memory.recall import Recall
from stellarbyte_torch.chat.session import open_session
from stellarbyte_torch.model_folder import load_model

from ..chat_models import chat_folder

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "What is my dog called?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(
        tmp_path_factory.mktemp("chat") / "model", max_position_embeddings=2048, position_embedding="rope"
    )


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_model(folder, "cpu")


def test_it_answers_as_the_chat_does(folder: Path, model: Any, tmp_path: Path) -> None:
    with MemoryModel(model, tmp_path / "memory.db", writes=True, max_new_tokens=8) as remembering:
        assert remembering.memory.add("My dog is called Rex.", source="x").kept
        answer = remembering.generate(TURNS)
        assert [found.entry.text for found in answer.recalled] == ["My dog is called Rex."]
        assert answer.kept and len(TURNS) == 4
        entry = remembering.memory.get(1)
        assert entry is not None and entry.uses == 1

    session = open_session(folder, max_new_tokens=8)
    with Memory(tmp_path / "other.db") as memory:
        memory.add("My dog is called Rex.", source="x")
        session.recall, session.system = Recall(memory), "Be brief."
        session.messages = [dict(turn) for turn in TURNS[1:3]]
        expected = session.answer(TURNS[-1]["content"])
    assert (answer.text, answer.prompt_tokens) == (expected.text, expected.prompt_tokens)


def test_one_message_and_no_memory_of_the_one_before(folder: Path, model: Any, tmp_path: Path) -> None:
    said: list[str] = []
    with Memory(tmp_path / "memory.db") as memory:
        remembering = MemoryModel(model, memory, AutoTokenizer.from_pretrained(folder), max_new_tokens=8)
        remembering.generate(TURNS)
        answer = remembering.generate("hello", said.append)
        remembering.close()
        assert "".join(said) == answer.text == open_session(folder, max_new_tokens=8).answer("hello").text
        assert (answer.recalled, answer.kept) == ((), ())
        memory.add("still open")


def test_a_turn_corrects_the_one_before(folder: Path, model: Any, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "My dog is called Rex."}, {"role": "assistant", "content": "yes"}]
    with Memory(tmp_path / "memory.db") as memory:
        remembering = MemoryModel(model, memory, AutoTokenizer.from_pretrained(folder), writes=True, max_new_tokens=2)
        remembering.generate(turns[:1])
        (decision,) = remembering.generate([*turns, {"role": "user", "content": "no, it's Max"}]).kept
        assert decision.outcome == "replaced" and [entry.text for entry in memory.list()] == ["My dog is called Max."]


def test_the_store_of_a_chat_with_the_same_folder(folder: Path, model: Any, tmp_path: Path) -> None:
    from stellarbyte.memory.embedders import open_embedder

    with MemoryModel(model, tmp_path / "memory.db", max_new_tokens=2) as remembering:
        remembering.memory.add("My dog is called Rex.")
    with Memory(tmp_path / "memory.db", embedder=open_embedder(folder, "cpu")) as memory:
        (found,) = memory.search("What is my dog called?")
        assert set(found.ranks) == {"words", "vectors"}
    other = load_model(folder, "cpu")
    other.config._name_or_path = ""
    other.model.layers[0].mlp.up_proj.weight.data += 1
    with pytest.raises(UserError, match="embed"):
        MemoryModel(other, tmp_path / "memory.db", AutoTokenizer.from_pretrained(folder))


def test_the_budget_is_the_least_of_what_is_asked_for_and_a_quarter_of_the_context(model: Any, tmp_path: Path) -> None:
    with Memory(tmp_path / "memory.db") as memory:
        memory.add("My dog is called Rex.")
        for budget, context, count in ((512, 2048, 1), (100, 2048, 0), (512, 512, 0)):
            remembering = MemoryModel(model, memory, memory_tokens=budget, max_new_tokens=2)
            remembering._session.context = context
            assert len(remembering.generate("What is my dog called?").recalled) == count


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "messages must end with the user's, and have a system turn at the beginning or none"),
        (TURNS[:1], "messages must end with the user's"),
        (TURNS[:3], "messages must end with the user's"),
        ([*TURNS[1:3], *TURNS], "messages must end with the user's, and have a system turn at the beginning"),
        ([{"role": "tool", "content": "x"}], "messages has 'tool' and 'x', expected turns with a role of system, user"),
        ([{"role": "user", "content": ["x"]}], "messages has 'user' and a list, expected turns"),
        ([{"content": "x"}], "messages has null and 'x'"),
    ],
)
def test_what_is_no_conversation(model: Any, messages: Any, complaint: str, tmp_path: Path) -> None:
    with (
        MemoryModel(model, tmp_path / "memory.db", max_new_tokens=2) as remembering,
        pytest.raises(UserError, match=complaint),
    ):
        remembering.generate(messages)


def test_a_model_of_no_folder(folder: Path, tmp_path: Path) -> None:
    other = load_model(folder, "cpu")
    other.config._name_or_path = "gone"
    with pytest.raises(UserError, match="loaded from no folder of this machine: give its tokenizer, too"):
        MemoryModel(other, tmp_path / "memory.db")
    with pytest.raises(UserError, match="--memory-tokens 0 must be at least 1"):
        MemoryModel(other, tmp_path / "memory.db", AutoTokenizer.from_pretrained(folder), memory_tokens=0)
