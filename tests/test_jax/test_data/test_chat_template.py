import json
from dataclasses import replace
from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import RecordError
from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data.chat_template import TURN, TURN_END, ChatTemplate, chat_template
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.data.tokenizer_training import CHAT_TEMPLATE

MESSAGES = [{"role": "user", "content": "Why <so>?"}, {"role": "assistant", "content": "So."}]
DATA = DataConfig(sources=(SourceConfig("x.jsonl"),), tokenizer="t", shards="s", kind="chat")


def render(source: str, tokenizer: Tokenizer, messages: list = MESSAGES, tools: tuple = ()) -> str:
    return ChatTemplate(source, tokenizer).render(messages, tools, "x:1")


def with_files(tokenizer: Tokenizer, **files: object) -> Tokenizer:
    kept = {name: text for name, text in tokenizer.files.items() if name == "tokenizer.json"}
    return Tokenizer(kept | {name.replace("__", "."): text for name, text in files.items()}, "folder")


def test_where_the_template_comes_from(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert chat_template(DATA, tokenizer) == CHAT_TEMPLATE
    bare = with_files(tokenizer)
    assert chat_template(DATA, bare) is None
    assert chat_template(replace(DATA, chat_template="stellarbyte"), bare) == CHAT_TEMPLATE
    (tmp_path / "x.jinja").write_text("{{ messages }}", "utf-8")
    assert chat_template(replace(DATA, chat_template=str(tmp_path / "x.jinja")), tokenizer) == "{{ messages }}"
    in_config = with_files(tokenizer, tokenizer_config__json='{"chat_template": "in config"}')
    assert chat_template(DATA, in_config) == "in config"


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ('{"chat_template": [{"name": "default"}]}', "has a chat_template that is a list, not one text"),
        ("[]", "is not a JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_a_tokenizers_config_that_gives_none(tokenizer: Tokenizer, config: str, complaint: str) -> None:
    with pytest.raises(UserError, match=rf"folder/tokenizer_config.json {complaint}"):
        chat_template(DATA, with_files(tokenizer, tokenizer_config__json=config))


def test_a_template_file_that_cannot_be_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    missing = replace(DATA, chat_template=str(tmp_path / "x.jinja"))
    with pytest.raises(UserError, match=r"data.chat_template .*x.jinja cannot be read \(No such file or directory\)"):
        chat_template(missing, tokenizer)
    (tmp_path / "x.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"cannot be read \(it is not UTF-8\): name a Jinja file, or stellarbyte"):
        chat_template(missing, tokenizer)


def test_our_own_template_marks_what_the_assistant_says(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(CHAT_TEMPLATE, tokenizer)
    assert template.marks_turns
    said = f"{TURN}So.<|SEOS|>{TURN_END}"
    assert template.render(MESSAGES, (), "x:1") == f"<|SBOS|>user\nWhy <so>?<|SEOS|><|SBOS|>assistant\n{said}"


def test_what_templates_may_use(tokenizer: Tokenizer) -> None:
    assert render("{{ messages[0] | tojson }}", tokenizer) == json.dumps(MESSAGES[0])
    assert render("{{ tools }}{{ documents }}{{ add_generation_prompt }}", tokenizer) == "NoneNoneFalse"
    assert render("{{ tools | tojson(indent=1) }}", tokenizer, tools=({"a": "é"},)) == '[\n {\n  "a": "é"\n }\n]'
    assert render("{% for m in messages %}{% break %}{% endfor %}x", tokenizer) == "x"
    assert not ChatTemplate("{# generation #}", tokenizer).marks_turns
    # Llama 3's templates have a date of their own where there is no strftime_now.
    assert render("{% if strftime_now is defined %}today{% else %}26 Jul 2024{% endif %}", tokenizer) == "26 Jul 2024"
    objects = with_files(tokenizer, tokenizer_config__json='{"eos_token": {"content": "E"}, "add_bos_token": true}')
    assert render("{{ eos_token }}{{ add_bos_token }}", objects) == "E"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{{ raise_exception('no system turn') }}", "no system turn"),
        ("{{ strftime_now('%d') }}", "'strftime_now' is undefined"),
        ("{{ messages[0].content + 3 }}", "can only concatenate str"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_what_does_not_suit_a_template(tokenizer: Tokenizer, source: str, complaint: str) -> None:
    with pytest.raises(RecordError, match=rf"x:1 does not suit the chat template \(.*{complaint}"):
        render(source, tokenizer)


@pytest.mark.parametrize("source", ["\n{% for %}", "\n{{ 'x' }", "\n{% generation %}x"])
def test_a_template_that_is_no_jinja(tokenizer: Tokenizer, source: str) -> None:
    with pytest.raises(UserError, match=r"the chat template is not Jinja: .* in its line 2"):
        ChatTemplate(source, tokenizer)
