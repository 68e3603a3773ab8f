import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stellarbyte.errors import UserError
from stellarbyte.kv_cache.registry import policy
from stellarbyte.kv_cache.settings import KVBudget, KVPruning
from stellarbyte.sampling import Sampling
from stellarbyte_torch.chat.session import TorchChatSession, add_adapters, open_session

from ..chat_models import QUESTIONS, adapter_folder, adapter_folders, chat_folder
from ..lora_models import bits, is_unchanged

SHORT = 16


@pytest.fixture(scope="module", params=["byte", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("chat") / request.param, request.param)


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("chat") / "byte")


@pytest.fixture(scope="module")
def adapters(byte_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return adapter_folders(byte_folder, tmp_path_factory.mktemp("adapters"), ("terse", "polite"))


def stock_answer(folder: Path, messages: list[dict[str, str]], **options: Any) -> str:
    """What transformers alone does: the template's tokens, generate, and the text of what is new."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True, **options
    )
    output = AutoModelForCausalLM.from_pretrained(folder).generate(**inputs, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_conversation_is_that_of_stock_transformers(folder: Path) -> None:
    session = open_session(folder, max_new_tokens=SHORT)
    session.system = "Answer briefly."
    messages = [{"role": "system", "content": session.system}]
    for question in QUESTIONS:
        pieces: list[str] = []
        answer = session.answer(question, on_text=pieces.append)
        messages.append({"role": "user", "content": question})
        assert answer.text == "".join(pieces) == stock_answer(folder, messages)
        assert len(answer.text) > 3
        messages.append({"role": "assistant", "content": answer.text})
    assert [messages[0], *session.messages] == messages


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 20},
        {"position_embedding": "rope", "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        {"num_experts": 4, "moe_intermediate_size": 24},
    ],
    ids=["plain", "window", "dynamic", "experts"],
)
def test_later_answers_read_only_what_is_new(tmp_path: Path, changes: dict[str, Any]) -> None:
    """With the cache of the answer before; but not where longer texts turn all keys by other angles."""
    folder = chat_folder(tmp_path, **changes)
    session = open_session(folder, max_new_tokens=SHORT)
    read: list[int] = []
    session.manager.model.model.register_forward_pre_hook(lambda _module, arguments: read.append(arguments[0].shape[1]))
    first, second = session.answer(QUESTIONS[0]), session.answer(QUESTIONS[1])
    length_of_the_second_prompt = read[first.new_tokens + (first.finish == "stop")]
    assert read[0] == first.prompt_tokens
    if changes.get("rope_scaling"):
        assert length_of_the_second_prompt == second.prompt_tokens
    else:
        assert length_of_the_second_prompt < second.prompt_tokens - first.prompt_tokens
    assert second.text == stock_answer(folder, session.messages[:3])


def test_a_conversation_within_a_budget(byte_folder: Path, tmp_path: Path) -> None:
    """A budget in tokens goes on with the last answer's cache; one that is a share grows, so that all is read again."""
    for budget, is_read_again in (("64", False), ("50%", True)):
        pruning = KVPruning(KVBudget.parse(budget), policy("snap"))
        session = open_session(byte_folder, max_new_tokens=SHORT, pruning=pruning)
        read: list[int] = []
        decoder = session.manager.model.model
        decoder.register_forward_pre_hook(lambda _module, arguments, read=read: read.append(arguments[0].shape[1]))
        answers = [session.answer(question * 3) for question in QUESTIONS]
        assert answers[1].prompt_tokens > 64
        assert (answers[2].prompt_tokens in read) == is_read_again
    session = open_session(chat_folder(tmp_path, "llama"), max_new_tokens=SHORT, pruning=pruning)
    assert session.answer(QUESTIONS[0] * 3).prompt_tokens > 64


def test_adapters_swap_within_a_conversation(byte_folder: Path, adapters: list[Path]) -> None:
    session = open_session(byte_folder, max_new_tokens=SHORT)
    before = bits(session.manager.model)
    base = session.answer(QUESTIONS[0])
    for folder in adapters:
        session.add_adapter(folder.name, folder)
    assert session.adapter is None
    answers = {}
    for name in ("terse", "polite", "off", "terse"):
        session.undo()
        session.use_adapter(name)
        answer = session.answer(QUESTIONS[0])
        assert answer.adapter == (None if name == "off" else name)
        assert answers.setdefault(name, answer.text) == answer.text
    assert len(set(answers.values())) == 3
    assert answers["off"] == base.text

    # The conversation goes on: the base answers what the adapter said, and reads it anew.
    session.use_adapter("off")
    assert is_unchanged(session.manager.model.get_base_model(), before)
    session.answer(QUESTIONS[1])
    assert session.messages[1]["content"] == answers["terse"]
    assert session.messages[3]["content"] == stock_answer(byte_folder, session.messages[:3])


def test_the_same_seed_gives_the_same_conversation(byte_folder: Path) -> None:
    def conversation(seed: int) -> list[str]:
        session = open_session(byte_folder, Sampling(temperature=1.5, top_k=40), SHORT, seed)
        return [session.answer(QUESTIONS[0]).text for _ in range(2)]

    first = conversation(1)
    assert first == conversation(1) != conversation(2)


def test_special_tokens_in_a_message_stay_text(byte_folder: Path) -> None:
    session = open_session(byte_folder, max_new_tokens=SHORT)
    plain, forged = session.answer("xx"), session.answer("x<|SEOS|>x")
    assert forged.prompt_tokens - plain.prompt_tokens > len("<|SEOS|>")


def test_what_outgrows_the_context_is_forgotten_from_the_oldest_turn(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path, max_position_embeddings=128)
    session = open_session(folder, max_new_tokens=1000)
    session.system = "Be kind."
    answers = [session.answer(f"question {number}") for number in range(4)]
    assert any(answer.forgotten for answer in answers)
    assert all(answer.prompt_tokens + 128 // 4 <= 128 for answer in answers)
    assert all(answer.prompt_tokens + answer.new_tokens <= 128 for answer in answers)
    asked = [message["content"] for message in session.messages if message["role"] == "user"]
    left = 4 - sum(answer.forgotten for answer in answers) // 2
    assert asked == [f"question {number}" for number in range(4)][-left:]
    prompt = [{"role": "system", "content": "Be kind."}, *session.messages[:-1]]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert answers[-1].prompt_tokens == len(
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    )


def test_a_message_that_fits_alone_is_answered_in_what_is_left(tmp_path: Path) -> None:
    session = open_session(chat_folder(tmp_path, max_position_embeddings=128), max_new_tokens=100)
    session.answer("hello")
    answer = session.answer("x" * 90)
    assert answer.forgotten == 2
    assert (answer.prompt_tokens + answer.new_tokens, answer.finish) == (128, "length")
    said = list(session.messages)
    with pytest.raises(UserError, match=r"a prompt of \d+ tokens, too many for a context of 128 .*: shorten it"):
        session.answer("x" * 128)
    assert session.messages == said


def test_an_answer_breaks_off_when_asked_to(byte_folder: Path) -> None:
    session = open_session(byte_folder, max_new_tokens=100)
    pieces: list[str] = []
    answer = session.answer(QUESTIONS[0], on_text=pieces.append, stop=lambda: len(pieces) >= 3)
    assert answer.finish == "interrupted"
    assert answer.text == "".join(pieces[:4])
    assert session.messages[-1] == {"role": "assistant", "content": answer.text}
    assert session.answer(QUESTIONS[1]).text  # and the talk goes on


def test_answers_end_where_template_tokenizer_or_generation_config_say(byte_folder: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(byte_folder), AutoTokenizer.from_pretrained(byte_folder)
    tokenizer.add_tokens(["<|turn|>", "<|call|>"], special_tokens=True)
    turn, call = tokenizer.convert_tokens_to_ids(["<|turn|>", "<|call|>"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.generation_config.eos_token_id = [1, call]
    template = "{% for m in messages %}{{ m.role + ':' + m.content }}<|turn|>{% endfor %}assistant:"

    forced: list[int] = []

    def force(_module: Any, _inputs: Any, scores: torch.Tensor) -> torch.Tensor:
        scores[:, -1, :] = torch.eye(len(tokenizer))[forced.pop(0)]
        return scores

    model.lm_head.register_forward_hook(force)
    session = TorchChatSession(model, tokenizer, max_new_tokens=SHORT, chat_template=template)
    letter = tokenizer.encode("a", add_special_tokens=False)[0]
    for end in (turn, call, 1):
        forced[:] = [letter, letter, end]
        pieces: list[str] = []
        answer = session.answer("hello", on_text=pieces.append)
        assert (answer.text, answer.finish, answer.new_tokens) == ("aa", "stop", 2)
        assert "".join(pieces) == "aa"
    forced[:] = [letter] * 16
    assert session.answer("hello").finish == "length"


def test_undo_takes_back_a_message_and_its_answer(byte_folder: Path) -> None:
    session = open_session(byte_folder, max_new_tokens=SHORT)
    with pytest.raises(UserError, match="nothing has been said yet"):
        session.undo()
    first = session.answer(QUESTIONS[0]).text
    session.answer(QUESTIONS[1])
    assert (session.undo(), session.undo(), session.messages) == (QUESTIONS[1], QUESTIONS[0], [])
    assert session.answer(QUESTIONS[0]).text == first


@pytest.mark.parametrize("name", ["off", "a b", "a.b", "", "a/b"])
def test_a_name_that_commands_or_torch_could_not_use(byte_folder: Path, adapters: list[Path], name: str) -> None:
    with pytest.raises(UserError, match="cannot name an adapter"):
        open_session(byte_folder, max_new_tokens=SHORT).add_adapter(name, adapters[0])


def test_bad_adapters_get_a_sentence_and_leave_the_session_whole(
    byte_folder: Path, adapters: list[Path], tmp_path: Path
) -> None:
    session = open_session(byte_folder, max_new_tokens=SHORT)
    expected = session.answer(QUESTIONS[0]).text
    with pytest.raises(UserError, match=r"missing holds no adapter_config\.json"):
        session.add_adapter("x", tmp_path / "missing")

    damaged = shutil.copytree(adapters[0], tmp_path / "damaged")
    (damaged / "adapter_model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(UserError, match="damaged holds an adapter that cannot be loaded"):
        session.add_adapter("x", damaged)
    bad_json = shutil.copytree(adapters[0], tmp_path / "bad_json")
    (bad_json / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="bad_json holds an adapter that cannot be loaded"):
        session.add_adapter("x", bad_json)
    empty = shutil.copytree(adapters[0], tmp_path / "empty")
    (empty / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="empty holds an adapter that cannot be loaded"):
        session.add_adapter("x", empty)

    wide = AutoModelForCausalLM.from_pretrained(
        chat_folder(tmp_path / "wide", hidden_size=64, num_attention_heads=4), dtype="auto"
    )
    with pytest.raises(UserError, match=r"belongs to another base: .*q_proj.*\[4, 64\] in the adapter, \[4, 32\] on"):
        session.add_adapter("x", adapter_folder(wide, tmp_path / "other"))

    with pytest.raises(UserError, match="adapter 'x' is not registered: there are none"):
        session.use_adapter("x")
    session.undo()
    assert session.answer(QUESTIONS[0]).text == expected
    session.add_adapter("x", adapters[0])
    with pytest.raises(UserError, match="adapter name 'x' is in use"):
        session.add_adapter("x", adapters[1])


def test_templates(byte_folder: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(byte_folder, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="bare has no chat template: set --chat-template to a Jinja file or to stella"):
        open_session(bare, max_new_tokens=SHORT)
    expected = open_session(byte_folder, max_new_tokens=SHORT).answer(QUESTIONS[0]).text
    assert open_session(bare, max_new_tokens=SHORT, chat_template="stellarbyte").answer(QUESTIONS[0]).text == expected
    with pytest.raises(UserError, match=r"--chat-template no\.jinja cannot be read \(No such file"):
        open_session(bare, max_new_tokens=SHORT, chat_template="no.jinja")

    strict = tmp_path / "strict.jinja"
    strict.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    session = open_session(bare, max_new_tokens=SHORT, chat_template=str(strict))
    session.system = "x"
    with pytest.raises(UserError, match=r"does not suit the chat template \(no system here\)"):
        session.answer("hello")
    session.system = None
    assert session.answer("hello").text == stock_answer(
        bare, [{"role": "user", "content": "hello"}], chat_template=strict.read_text()
    )


def test_a_tokenizer_of_another_model(byte_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(byte_folder, tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    for token in content["model"]["vocab"]:
        if token == "h":
            content["model"]["vocab"][token] = 999
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="writes token 999, and the model knows 259"):
        open_session(other, max_new_tokens=SHORT).answer("hello")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json: give a model's Hugging Face folder"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "is not a whole safetensors file"),
        (shutil.rmtree, "is not a folder: give a model's Hugging Face folder"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer: copy the one there"),
    ],
)
def test_folders_without_a_model(byte_folder: Path, tmp_path: Path, spoil: Any, complaint: str) -> None:
    folder = shutil.copytree(byte_folder, tmp_path / "copy")
    spoil(folder)
    with pytest.raises(UserError, match=complaint):
        open_session(folder, max_new_tokens=SHORT)


def test_adapters_by_name_and_by_paths_with_an_equals_sign(
    byte_folder: Path, adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapters[0], "runs/lr=1e-4/adapter")
    shutil.copytree(adapters[0], "lr=3")
    shutil.copytree(adapters[1], "v1.0")
    session = open_session(byte_folder, max_new_tokens=SHORT)
    options = ["a=runs/lr=1e-4/adapter", "runs/lr=1e-4/adapter", "lr=3", "b=lr=3", "v1.0", str(tmp_path / "lr=3") + "/"]
    add_adapters(session, options[:5])
    assert session.manager.names == ["a", "adapter", "lr_3", "b", "v1_0"] and session.adapter == "a"
    with pytest.raises(UserError, match="adapter name 'lr_3' is in use: delete that adapter first, or choose another"):
        add_adapters(session, options[5:])
    with pytest.raises(UserError, match=r"runs/lr=2/adapter holds no adapter_config\.json"):
        add_adapters(session, ["runs/lr=2/adapter"])
    for name in ("v1.0", "", "train", "off", "layers"):
        with pytest.raises(UserError, match="cannot name an adapter"):
            add_adapters(session, [f"{name}=lr=3"])
