import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from stellarbyte.chat.template import STELLARBYTE_TEMPLATE
from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data.chat_template import chat_template, chat_tokenizer, files_with_template
from stellarbyte_jax.data.tokenizer import Tokenizer

DATA = DataConfig(sources=(SourceConfig("x.jsonl"),), tokenizer="t", shards="s", kind="chat")


def with_files(tokenizer: Tokenizer, **files: object) -> Tokenizer:
    kept = {name: text for name, text in tokenizer.files.items() if name == "tokenizer.json"}
    return Tokenizer(kept | {name.replace("__", "."): text for name, text in files.items()}, "folder")


def test_where_the_template_comes_from(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert chat_template(tokenizer, None) == STELLARBYTE_TEMPLATE
    bare = with_files(tokenizer)
    assert chat_template(bare, None) is None
    assert chat_template(bare, "stellarbyte") == STELLARBYTE_TEMPLATE
    (tmp_path / "x.jinja").write_text("{{ messages }}", "utf-8")
    assert chat_template(tokenizer, str(tmp_path / "x.jinja")) == "{{ messages }}"
    in_config = with_files(tokenizer, tokenizer_config__json='{"chat_template": "in config"}')
    assert chat_template(in_config, None) == "in config"


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
        chat_template(with_files(tokenizer, tokenizer_config__json=config), None)


def test_a_template_file_that_cannot_be_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    missing = str(tmp_path / "x.jinja")
    with pytest.raises(UserError, match=r"data.chat_template .*x.jinja cannot be read \(No such file or directory\)"):
        chat_template(tokenizer, missing)
    (tmp_path / "x.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"cannot be read \(it is not UTF-8\): name a Jinja file, or stellarbyte"):
        chat_template(tokenizer, missing)


def test_special_tokens_are_texts_or_objects_around_them(tokenizer: Tokenizer) -> None:
    config = '{"eos_token": {"content": "E"}, "add_bos_token": true, "pad_token": null}'
    objects = chat_tokenizer(with_files(tokenizer, tokenizer_config__json=config), None)
    assert objects.special_tokens == {"bos_token": "<|SBOS|>", "eos_token": "E", "pad_token": "<|PAD|>"}
    assert (objects.name, objects.template) == ("folder", None)


def test_a_run_keeps_the_template_that_it_learns(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """What its exports and chats then go by."""
    template, path = "{{ messages }}", tmp_path / "x.jinja"
    path.write_text(template, "utf-8")
    sha256 = hashlib.sha256(template.encode()).hexdigest()
    named = replace(DATA, chat_template=str(path))
    files, warning = files_with_template(tokenizer, named, sha256)
    assert warning is None and files == {**tokenizer.files, "chat_template.jinja": template}
    for data, prepared_by in ((DATA, sha256), (named, None)):  # the tokenizer's own; no conversations
        assert files_with_template(tokenizer, data, prepared_by) == (tokenizer.files, None)
    path.write_text("{{ another }}", "utf-8")
    files, warning = files_with_template(tokenizer, named, sha256)
    assert files == tokenizer.files and warning is not None and "is not what the token shards were made by" in warning
    path.unlink()
    files, warning = files_with_template(tokenizer, named, sha256)
    assert (
        files == tokenizer.files and warning is not None and "exports of this run carry the tokenizer's own" in warning
    )
