"""A conversation with a run's model: the same tokens as its generator alone, and a conversation like PyTorch's."""

import io
import json
import sys
from pathlib import Path

import pytest

from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte.sampling import Sampling
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.inference.chat import JaxChatSession
from stellarbyte_jax.inference.generate import Generator
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from test_jax.conftest import VOCAB_SIZE
from test_jax.tiny import tiny_config, tiny_model

CapSys = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tokenizer(small_data: DataConfig) -> Tokenizer:
    return Tokenizer.load(small_data.tokenizer)


@pytest.fixture(scope="module")
def model() -> ByteForCausalLM:
    return tiny_model(tiny_config(vocab_size=VOCAB_SIZE, max_position_embeddings=128), seed=1)


def test_answers_are_the_generators(model: ByteForCausalLM, tokenizer: Tokenizer) -> None:
    session, streamed = JaxChatSession(model, tokenizer, max_new_tokens=12), []
    first = session.answer("star", on_text=streamed.append)
    prompt = session.encoder.encode_prompt([{"role": "user", "content": "star"}])
    (tokens,) = Generator(model).generate([prompt], 12)
    assert first.text == tokenizer.decode(tokens) == "".join(streamed)
    assert (first.prompt_tokens, first.new_tokens, first.adapter) == (len(prompt), len(tokens), None)
    second = session.answer("byte")
    prompt = session.encoder.encode_prompt(session.messages[:-1])
    (tokens,) = Generator(model).generate([prompt], min(12, 128 - len(prompt)))
    assert second.text == tokenizer.decode(tokens)
    assert session.undo() == "byte" and len(session.messages) == 2
    assert session.answer("byte").text == second.text


def test_draws_come_about_again_by_the_same_seed(model: ByteForCausalLM, tokenizer: Tokenizer) -> None:
    def talk(seed: int) -> list[str]:
        session = JaxChatSession(model, tokenizer, Sampling(temperature=1.0), max_new_tokens=8, seed=seed)
        return [session.answer("star").text, session.answer("star").text]

    assert talk(3) == talk(3) != talk(4)
    session = JaxChatSession(model, tokenizer, Sampling(temperature=1.0), max_new_tokens=8, seed=3)
    answers = set()
    for _ in range(4):
        answers.add(session.answer("star").text)
        session.messages.clear()
    assert len(answers) > 1, "answers to equal conversations are drawn anew"


def test_what_ends_an_answer(model: ByteForCausalLM, tokenizer: Tokenizer) -> None:
    whole = JaxChatSession(model, tokenizer, max_new_tokens=40).answer("star")
    assert whole.finish == "length" and whole.new_tokens == 40
    stopped = JaxChatSession(model, tokenizer, max_new_tokens=40, stop=[whole.text[5:8]]).answer("star")
    assert stopped.finish == "stop" and whole.text.startswith(stopped.text) and len(stopped.text) <= 5
    calls = iter([False, True])
    broken_off = JaxChatSession(model, tokenizer, max_new_tokens=40).answer("star", stop=lambda: next(calls))
    assert broken_off.finish == "interrupted" and 0 < broken_off.new_tokens < 40
    assert whole.text.startswith(broken_off.text.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_a_turn_ends_where_the_template_ends_it(model: ByteForCausalLM, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """With a template that ends turns by <|PAD|>, an answer ends there, too."""
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}<|PAD|>{% endfor %}")
    session = JaxChatSession(model, tokenizer, chat_template=str(template))
    assert session._end_ids == {tokenizer.eos_token_id, tokenizer.pad_token_id}


def test_what_is_refused(model: ByteForCausalLM, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="--max-new-tokens 0 must be at least 1"):
        JaxChatSession(model, tokenizer, max_new_tokens=0)
    with pytest.raises(UserError, match="stop '' would end"):
        JaxChatSession(model, tokenizer, stop=[""])
    with pytest.raises(UserError, match="--seed"):
        JaxChatSession(model, tokenizer, seed=-1)
    bare = Tokenizer({"tokenizer.json": tokenizer.files["tokenizer.json"]}, "a tokenizer")
    with pytest.raises(UserError, match="has no chat template: set --chat-template"):
        JaxChatSession(model, bare)
    session = JaxChatSession(model, tokenizer)
    with pytest.raises(UserError, match="to swap adapters, export it by `stellarbyte convert to-hf`"):
        session.use_adapter("terse")
    session.use_adapter("off")
    with pytest.raises(UserError, match="too many for a context of 128"):
        session.answer("star " * 200)
    assert session.messages == []


def test_by_command(finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: CapSys) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("star\n/adapters\nbyte\n/quit\n"))
    assert main(["chat", str(finished_run), "--max-new-tokens", "4", "--json", "--step", "12"]) == 0
    first, reply, second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert reply == {"command": "/adapters", "reply": "* off"}
    assert [first["message"], second["message"]] == ["star", "byte"]
    assert first["new_tokens"] <= 4 and first["adapter"] is None
