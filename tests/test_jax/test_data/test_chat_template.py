from dataclasses import replace
from pathlib import Path

import pytest

from stellarbyte.chat.template import STELLARBYTE_TEMPLATE
from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data.chat_template import chat_template, chat_tokenizer
from stellarbyte_jax.data.tokenizer import Tokenizer

DATA = DataConfig(sources=(SourceConfig("x.jsonl"),), tokenizer="t", shards="s", kind="chat")


def with_files(tokenizer: Tokenizer, **files: object) -> Tokenizer:
    kept = {name: text for name, text in tokenizer.files.items() if name == "tokenizer.json"}
    return Tokenizer(kept | {name.replace("__", "."): text for name, text in files.items()}, "folder")


def test_where_the_template_comes_from(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert chat_template(DATA, tokenizer) == STELLARBYTE_TEMPLATE
    bare = with_files(tokenizer)
    assert chat_template(DATA, bare) is None
    assert chat_template(replace(DATA, chat_template="stellarbyte"), bare) == STELLARBYTE_TEMPLATE
    (tmp_path / "x.jinja").write_text("{{ messages }}", "utf-8")
    assert chat_template(replace(DATA, chat_template=str(tmp_path / "x.jinja")), tokenizer) == "{{ messages }}"
    in_config = with_files(tokenizer, tokenizer_config__json='{"chat_template": "in config"}')
    assert chat_template(DATA, in_config) == "in config"


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ('{"chat_template": [{"name": "default"}]}', "has a chat_template that is a list, not one text"),
        ("[]", "holds a list, expected an object"),
        ("{", "is not valid JSON"),
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


def test_special_tokens_are_texts_or_objects_around_them(tokenizer: Tokenizer) -> None:
    config = '{"eos_token": {"content": "E"}, "add_bos_token": true, "pad_token": null}'
    objects = chat_tokenizer(DATA, with_files(tokenizer, tokenizer_config__json=config))
    assert objects.special_tokens == {"bos_token": "<|SBOS|>", "eos_token": "E", "pad_token": "<|PAD|>"}
    assert (objects.name, objects.template) == ("folder", None)
