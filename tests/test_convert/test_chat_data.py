"""The same conversations are the same samples on both sides, and Transformers'."""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stellarbyte.records.bad_records import RecordError
from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data import chat_encoding as jax_encoding
from stellarbyte_jax.data import conversations as jax_conversations
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.token_shards import TokenShards
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.data.tokenizer_training import CHAT_TEMPLATE, train_tokenizer
from stellarbyte_torch import chat_encoding as torch_encoding
from stellarbyte_torch import conversations as torch_conversations
from stellarbyte_torch import data as torch_data
from stellarbyte_torch import data_config as torch_config
from test_convert.conftest import TEXT

CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}
{% else %}{{ message.content }}<|im_end|>
{% endif %}{% endfor -%}"""

# Llama 2's manner: no marks around users' turns but words, and white space cut off; and it refuses some.
INSTRUCT = """\
{%- for message in messages -%}
{%- if loop.first and message.role == 'tool' -%}{{ raise_exception('no tool first') }}{%- endif -%}
{%- if message.role == 'assistant' -%}
{% generation %}{{ message.content | trim }}{{ eos_token }}{% endgeneration %}
{%- else -%}
{{ bos_token }}[INST] {{ message.content | trim }} [/INST] {% endif %}{% endfor %}"""

TEMPLATES = {"stellarbyte": CHAT_TEMPLATE, "chatml": CHATML, "instruct": INSTRUCT}
TEMPLATES |= {
    f"{name} without marks": template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    for name, template in (("chatml", CHATML), ("instruct", INSTRUCT))
}

FORGED = ["<|SEOS|>", "<|SBOS|>assistant\n", "<|im_end|>"]
WORDS = ["the", " star", "\n", "\n\n", "  ", "<|", "|>", "im_end", "春眠", "🚀", "é", "é", "[INST]", "."]
ROLES = st.sampled_from(["user", "assistant", "system", "tool"])
LETTERS = st.characters(exclude_categories=["Cs"], max_codepoint=0xFFFFF)


def conversations(words: list[str]) -> st.SearchStrategy[list[dict[str, str]]]:
    pieces = st.lists(st.one_of(st.sampled_from(words), st.sampled_from(words), LETTERS), min_size=1, max_size=8)
    content = pieces.map("".join).filter(lambda text: bool(text.strip()))
    return st.lists(st.fixed_dictionaries({"role": ROLES, "content": content}), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat_tokenizer")
    train_tokenizer([TEXT] * 20, 320, folder, ["<|im_start|>", "<|im_end|>"], report=lambda _: None)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def in_jax(encoder: jax_encoding.ChatEncoder, messages: list[dict[str, str]], loss_on: Any = "assistant") -> Any:
    try:
        chat = encoder.render(jax_conversations.Conversation("x:1", messages), loss_on)
    except RecordError as error:
        return str(error)
    (sample,) = encoder.encode([chat])
    return sample["token"].tolist(), sample["trained"].tolist()


def in_torch(encoder: torch_encoding.ChatEncoder, messages: list[dict[str, str]], loss_on: str = "assistant") -> Any:
    (sample,) = encoder.encode([torch_conversations.Conversation("x:1", messages)], loss_on)
    if isinstance(sample, RecordError):
        return str(sample)
    return sample.input_ids.tolist(), sample.trained.tolist()


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_samples_equal_those_of_torch(folder: Path, theirs: PreTrainedTokenizerBase, template: str) -> None:
    ours = jax_encoding.ChatEncoder(Tokenizer.load(folder), template)
    torch_side = torch_encoding.ChatEncoder(theirs, template)

    @settings(max_examples=60, derandomize=True, deadline=None, database=None)
    @given(conversations([*WORDS, *FORGED]), st.sampled_from(["assistant", "assistant", "all"]))
    def check(messages: list[dict[str, str]], loss_on: str) -> None:
        assert in_jax(ours, messages, loss_on) == in_torch(torch_side, messages, loss_on)

    check()


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, CHATML, INSTRUCT], ids=["stellarbyte", "chatml", "instruct"])
def test_two_hundred_conversations_equal_those_of_transformers(
    folder: Path, theirs: PreTrainedTokenizerBase, template: str
) -> None:
    ours = jax_encoding.ChatEncoder(Tokenizer.load(folder), template)

    @settings(max_examples=200, derandomize=True, deadline=None, database=None)
    @given(conversations(WORDS).filter(lambda messages: messages[0]["role"] != "tool"))
    def check(messages: list[dict[str, str]]) -> None:
        chat = theirs.apply_chat_template(
            messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        mask = [bool(flag) for flag in chat["assistant_masks"]]
        assert in_jax(ours, messages) == (chat["input_ids"], [False, *mask[1:]])

    check()


VALUES = st.one_of(
    st.sampled_from(["x", "", " ", None, 3, [], {}, "[]", '[{"role": "user", "content": "x"}]', "{"]),
    st.lists(
        st.dictionaries(
            st.sampled_from(["role", "content", "tool_calls"]),
            st.sampled_from(["user", "assistant", "asistant", "x", " ", None, 3, [{"name": "f"}]]),
        ),
        max_size=3,
    ),
)
NAMES = ["messages", "tools", "prompt", "completion", "instruction", "input", "output", "system", "text", "id"]


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5))
def test_records_are_the_same_conversations(record: dict[str, Any]) -> None:
    def parsed(parse: Any) -> Any:
        try:
            return dataclasses.asdict(parse(record, "x:1"))
        except RecordError as error:
            return str(error)

    assert parsed(jax_conversations.parse_record) == parsed(torch_conversations.parse_record)


@pytest.mark.parametrize("on_too_long", ["truncate", "drop", "split"])
def test_prepared_samples_are_those_of_the_torch_side(
    folder: Path, theirs: PreTrainedTokenizerBase, tmp_path: Path, on_too_long: Any
) -> None:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"star {n}"},
                {"role": "assistant", "content": "byte " * (n % 9 + 1)},
            ]
        }
        for n in range(60)
    ]
    lines += [{"prompt": "the star " * 20, "completion": "no room"}, {"text": "a plain text"}, {"question": "bad"}]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataConfig(
        sources=(SourceConfig(str(path)),),
        tokenizer=str(folder),
        shards=str(tmp_path / "shards"),
        sequence_length=16,
        validation_fraction=0.0,
        on_bad_record="skip",
        on_too_long=on_too_long,
        kind="chat",
    )
    manifest = prepare(data, report=lambda _: None)
    shards = TokenShards.open(data.shards, "train")
    ours = [shards.read(int(start), int(stop)) for start, stop in pairwise(shards.starts)]

    config = torch_config.DataConfig(
        sources=(torch_config.SourceConfig(str(path)),),
        max_length=16,
        validation_fraction=0.0,
        on_bad_record="skip",
        on_too_long=on_too_long,
    )
    expected = torch_data.read_samples(config, theirs)
    assert len(ours) == len(expected.train)
    for sample, other in zip(ours, expected.train, strict=True):
        assert np.array_equal(sample["token"], other.input_ids)
        assert np.array_equal(sample["trained"], other.trained)
    assert manifest.samples is not None
    for name in ("trained_tokens", "too_long", "cut_tokens", "untrained"):
        assert getattr(manifest.samples, name) == getattr(expected, name), name
    assert manifest.samples.too_long > 5
    assert (manifest.bad_record_count, expected.bad_records) == (1, 1)
