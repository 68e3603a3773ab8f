"""A chat with a memory, of a run and of its export: written, used in a second session, corrected, forgotten."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from convert import hf_checkpoint
from convert.run_checkpoint import RunCheckpoint, save
from stellarbyte.door import main
from stellarbyte.memory import Memory
from stellarbyte.memory.marks import CLOSING, OPENING
from stellarbyte_jax.training.state import init_params
from test_convert.conftest import VOCAB_SIZE
from test_convert.models import tiny

CapSys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A run whose context has room for what is recalled."""
    config = tiny(vocab_size=VOCAB_SIZE, max_position_embeddings=1024, position_embedding="rope")
    params = jax.tree.map(np.asarray, jax.jit(init_params, static_argnums=(0, 1))(config, 0))
    path = tmp_path_factory.mktemp("memory") / "run"
    save(path, RunCheckpoint(params, config, tokenizer.files, step=0))
    return path


@pytest.fixture(scope="module")
def export(run: Path) -> Path:
    hf_checkpoint.to_hf(run, run.parent / "hf")
    return run.parent / "hf"


class Talk:
    """Talks by piped lines; each call is a session of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: CapSys, store: Path) -> None:
        self._monkeypatch, self._capsys, self._store = monkeypatch, capsys, store

    def __call__(self, model: Path, *lines: str, options: tuple[str, ...] = (), code: int = 0) -> Any:
        self._monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        arguments = ["chat", str(model), "--max-new-tokens", "4", "--json", "--memory", str(self._store), *options]
        assert main(arguments) == code
        output = self._capsys.readouterr()
        return output.err if code else [json.loads(line) for line in output.out.splitlines()]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: CapSys, tmp_path: Path) -> Talk:
    return Talk(monkeypatch, capsys, tmp_path / "memory.db")


@pytest.fixture(params=[pytest.param("run", marks=pytest.mark.long), "export"])
def model(request: pytest.FixtureRequest, run: Path, export: Path) -> Path:
    return run if request.param == "run" else export


def test_a_memory_over_sessions(model: Path, talk: Talk) -> None:
    (said,) = talk(model, "my star is called Rex", options=("--memory-write",))
    assert (said["recalled"], [one["outcome"] for one in said["kept"]]) == ([], ["added"])
    (first,) = talk(model, "what is my star called")
    assert [one["text"] for one in first["recalled"]] == ["My star is called Rex"] and first["kept"] == []
    assert first["recalled"][0]["source"] == "chat"
    # What is not recalled makes another prompt: the tokens of the block are in it.
    (without,) = talk(model, "is my star called by a byte", options=("--memory-floor", "1"))
    assert without["recalled"] == [] and without["prompt_tokens"] < first["prompt_tokens"]
    assert talk(model, "what is my star called", options=("--memory-user", "other"))[0]["recalled"] == []

    replies = talk(model, "/memories", "/forget rex", "/memories", "/remember the byte is called Max", "/memories byte")
    texts = [reply["reply"] for reply in replies]
    assert texts[0].endswith(", chat: My star is called Rex")
    assert texts[1:4] == [
        "memory 1 is deleted for good: My star is called Rex",
        "there are no memories yet",
        "remembered as 2",
    ]
    assert texts[4].endswith(", chat: the byte is called Max")
    (last,) = talk(model, "what is my star called", options=("--memory-floor", "0"))
    assert "Rex" not in json.dumps(last["recalled"])


def test_words_alone_and_vectors_of_another(model: Path, talk: Talk, tmp_path: Path) -> None:
    talk(model, "/remember my star is called Rex")
    (found,) = talk(model, "what is my star called", options=("--memory-embedder", "none"))[0]["recalled"]
    assert list(found["ranks"]) == ["words"]
    with Memory(tmp_path / "memory.db") as memory:
        assert len(memory) == 1


def test_both_say_the_same(run: Path, export: Path, talk: Talk) -> None:
    talk(run, "/remember my star is called Rex", options=("--memory-embedder", "none"))
    options = ("--memory-embedder", "none", "--memory-floor", "0.1", "--system", "be brief")
    said = [talk(model, "my star", "what is my star called", options=options) for model in (run, export)]
    for ours, theirs in zip(*said, strict=True):
        assert ours["recalled"] and (ours["text"], ours["prompt_tokens"]) == (theirs["text"], theirs["prompt_tokens"])


def test_a_message_that_fits_alone_is_answered_without_what_it_recalls(export: Path, tmp_path: Path) -> None:
    from stellarbyte.memory.recall import Recall
    from stellarbyte_torch.chat.session import open_session

    session = open_session(export, max_new_tokens=2)
    with Memory(tmp_path / "memory.db") as memory:
        memory.add("my star is called Rex")
        session.recall = Recall(memory)
        short = session.answer("star")
        assert len(short.recalled) == 1
        session.messages.clear()
        long = session.answer("star " * int(90_000 / session.encoder.length("star " * 100)))
        assert (long.recalled, long.forgotten) == ((), 0) and long.prompt_tokens < session.context
        session.messages.clear()
        again = session.answer("star")
        assert again.prompt_tokens == short.prompt_tokens and again.text == short.text
        entry = memory.get(1)
        assert entry is not None and entry.uses == 2


def test_where_the_block_stands_in_the_prompt(export: Path, tmp_path: Path) -> None:
    from stellarbyte.memory.recall import Recall
    from stellarbyte_torch.chat.session import open_session

    session = open_session(export, max_new_tokens=2)
    seen: list[str] = []
    encode = session.encoder.encode_prompt

    def watched(turns: Any) -> list[int]:
        seen.append("\n".join(f"{turn['role']}: {turn['content']}" for turn in turns))
        return encode(turns)

    session.encoder.encode_prompt = watched  # type: ignore[method-assign]
    with Memory(tmp_path / "memory.db") as memory:
        memory.add("my star is called ⟦Rex⟧")
        session.recall = Recall(memory)
        session.system = "be brief"
        told: list[Any] = []
        session.answer("my star", on_recall=told.extend)
        assert seen[-1].startswith(f"system: be brief\n\n{OPENING}\n") and f"{CLOSING}\nuser: my star" in seen[-1]
        assert "│ my star is called [Rex]" in seen[-1] and [one.entry.id for one in told] == [1]
        session.answer("nothing else")
        assert seen[-1].startswith("system: be brief\nuser: my star\n") and OPENING not in seen[-1]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--memory-tokens", "0"), "--memory-tokens 0 must be at least 1"),
        (("--memory-floor", "2"), "--memory-floor 2.0 must be a number from 0 to 1"),
        (("--memory-embedder", "nowhere"), "nowhere is not there: name a folder"),
    ],
)
def test_options_that_are_wrong(export: Path, talk: Talk, options: tuple[str, ...], complaint: str) -> None:
    assert complaint in talk(export, "star", options=options, code=2)


def test_options_without_a_memory(export: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys) -> None:
    assert main(["chat", str(export), "--memory-write"]) == 2
    assert "--memory-write is for a chat with a memory: give --memory FILE, too" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("/memories"))
    assert main(["chat", str(export)]) == 2
    assert "this chat has no memory: start it with --memory FILE" in capsys.readouterr().err


def test_what_is_recalled_is_told_beside_the_answer(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys
) -> None:
    store = tmp_path / "memory.db"
    with Memory(store) as memory:
        memory.add("my star is called Rex\x1b[2J", source="notes.md:3")
    monkeypatch.setattr(sys, "stdin", io.StringIO("my star"))
    options = ["--memory", str(store), "--memory-write", "--max-new-tokens", "2", "--memory-embedder", "none"]
    assert main(["chat", str(export), *options]) == 0
    output = capsys.readouterr()
    assert "recalled" not in output.out
    first, *rest = output.err.splitlines()
    assert first.startswith("recalled 1  20") and first.endswith(", notes.md:3: my star is called Rex\\x1b[2J")
    assert any(line.startswith("(remembered as 2)") or line.startswith("(not remembered") for line in rest)
