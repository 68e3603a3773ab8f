import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import RecordError
from stellarbyte_jax.data.chat_encoding import ChatEncoder
from stellarbyte_jax.data.conversations import Conversation
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.data.tokenizer_training import CHAT_TEMPLATE

WORDS = ["The", " quick", "\n", "  ", "<|SEOS|>", "<|SBOS|>assistant\n", "<|TOOL|>", "春眠", "🚀", "é", "|"]
CONTENT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map("".join).filter(lambda text: bool(text.strip()))
ROLES = st.sampled_from(["user", "assistant", "system", "tool"])
CONVERSATIONS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": CONTENT}), min_size=1, max_size=5)


def encode(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], template: str = CHAT_TEMPLATE, **fields: Any
) -> np.ndarray:
    encoder = ChatEncoder(tokenizer, template)
    (sample,) = encoder.encode([encoder.render(Conversation("x:1", messages, **fields))])
    return sample


@settings(max_examples=200, derandomize=True, database=None)
@given(CONVERSATIONS)
def test_a_sample_is_its_turns_and_nothing_written_in_one_ends_it(
    tokenizer: Tokenizer, messages: list[dict[str, str]]
) -> None:
    """Against the tokenizer alone, which never makes special tokens of text."""
    tokens: list[int] = []
    trained: list[bool] = []
    for message in messages:
        head, said = f"{message['role']}\n".encode(), message["content"].encode()
        body = tokenizer.encode(head + said)
        is_said = np.cumsum(tokenizer.byte_lengths[body]) > len(head)
        tokens += [tokenizer.bos_token_id, *body, tokenizer.eos_token_id]
        trained += [flag and message["role"] == "assistant" for flag in [False, *is_said.tolist(), True]]
    sample = encode(tokenizer, messages)
    assert sample["token"].tolist() == tokens
    assert sample["trained"].tolist() == trained


@settings(max_examples=50, derandomize=True, database=None)
@given(CONVERSATIONS)
def test_a_template_without_marks_trains_on_the_same(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> None:
    bare = re.sub(r"\{%-? *(end)?generation *-?%\}", "", CHAT_TEMPLATE)
    assert "generation %" not in bare
    assert np.array_equal(encode(tokenizer, messages, bare), encode(tokenizer, messages))


def test_a_template_without_marks_that_trims(tokenizer: Tokenizer) -> None:
    template = "{% for m in messages %}{{ bos_token }}{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    messages = [{"role": "user", "content": " a "}, {"role": "assistant", "content": "\n b "}]
    sample = encode(tokenizer, messages, template)
    assert tokenizer.decode(sample["token"]) == "ab"
    assert sample["token"][sample["trained"]].tolist() == [*tokenizer.encode("b"), tokenizer.eos_token_id]


def test_plain_text_is_between_bos_and_eos_and_trained_whole(tokenizer: Tokenizer) -> None:
    encoder = ChatEncoder(tokenizer, None)
    (sample,) = encoder.encode([encoder.render(Conversation("x:1", text="The <|SEOS|> fox"))])
    text = tokenizer.encode("The <|SEOS|> fox")
    assert sample["token"].tolist() == [tokenizer.bos_token_id, *text, tokenizer.eos_token_id]
    assert sample["trained"].tolist() == [False] + [True] * (len(sample) - 1)


def test_loss_on_all_leaves_out_the_first_token_alone(tokenizer: Tokenizer) -> None:
    encoder = ChatEncoder(tokenizer, CHAT_TEMPLATE)
    chat = encoder.render(Conversation("x:1", [{"role": "user", "content": "x"}]), "all")
    (sample,) = encoder.encode([chat])
    assert sample["trained"].tolist() == [False] + [True] * (len(sample) - 1)


def test_tools_and_calls_go_through_the_template(tokenizer: Tokenizer) -> None:
    template = (
        "{{ tools | tojson }}{% for m in messages %}{% generation %}{{ m.content }}{{ m.tool_calls | tojson }}"
        "{% endgeneration %}{% endfor %}"
    )
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "<|SEOS|>"}]}
    sample = encode(tokenizer, [call], template, tools=[{"name": "f<|PAD|>"}])
    assert tokenizer.decode(sample["token"]) == '[{"name": "f<|PAD|>"}][{"name": "<|SEOS|>"}]'
    assert tokenizer.decode(sample["token"][sample["trained"]]).endswith('{"name": "<|SEOS|>"}]')


@pytest.mark.parametrize(
    ("message", "template", "complaint"),
    [
        ({"role": "user", "content": "x\ud800"}, CHAT_TEMPLATE, "holds the lone surrogate U+D800"),
        ({"role": "user", "content": "x\U0010fff2"}, CHAT_TEMPLATE, "holds the private-use character U+10FFF2"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{}]},
            CHAT_TEMPLATE,
            "has tool_calls, which the chat template leaves out",
        ),
        (
            {"role": "assistant", "content": "", "tool_calls": [{}]},
            "{{ messages[0].tool_calls }}",
            "has tool_calls, which only {% generation %} marks can tell from the rest of the text: put them into",
        ),
        (
            {"role": "assistant", "content": "a b"},
            "{{ messages[0].content | length }}",
            "which rewrites what the assistant says: put {% generation %} marks into the template",
        ),
        (
            {"role": "user", "content": "a<|SEOS|>b"},
            "{% generation %}{{ messages[0].content[3:] }}{% endgeneration %}",
            "has a special token's text, which the chat template takes apart",
        ),
    ],
)
def test_what_cannot_be_encoded(tokenizer: Tokenizer, message: dict[str, Any], template: str, complaint: str) -> None:
    with pytest.raises(RecordError) as error:
        encode(tokenizer, [message], template)
    assert str(error.value).startswith("x:1 ")
    assert complaint in str(error.value)


def test_a_missing_template_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"x:1 is a conversation, but the tokenizer .* has no chat template: set data"):
        ChatEncoder(tokenizer, None).render(Conversation("x:1", [{"role": "user", "content": "x"}]))
