"""On all chat templates that TRL ships, what is trained on is what the assistant says, and no word of anybody else."""

from datetime import datetime
from typing import Any

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from stellarbyte.chat.conversations import Conversation
from stellarbyte.chat.template import ChatTemplate
from stellarbyte.records.bad_records import RecordError

pytest.importorskip("trl")

from .trl_templates import SPECIAL_TOKENS, assistant, encoder_of, templates, trained_texts, user, words

TEMPLATES = templates()
FEW = ["qwen3", "glm4moe", "cohere2", "deepseekv3", "gptoss", "gemma3", "lfm2_2_5", "phi3", "llama3_1"]


def think(thought: str, answer: str) -> dict[str, Any]:
    return assistant(f"<think>\n{thought}\n</think>\n\n{answer}")


# Messages, and of each answer what it says: with and without its thinking, for templates may leave that out.
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[set[str]]]] = {
    "plain": ([user("Question"), assistant("Answer.")], [{"Answer."}]),
    "two": (
        [user("Question"), assistant("Answer."), user("Another"), assistant("Second.")],
        [{"Answer."}, {"Second."}],
    ),
    "system": (
        [{"role": "system", "content": "Order"}, user("Question"), assistant("Answer.")],
        [{"Answer."}],
    ),
    "thinking last": (
        [user("Question"), assistant("Answer."), user("Another"), think("hm", "Second.")],
        [{"Answer."}, {"Second.", "hmSecond."}],
    ),
    "thinking first": (
        [user("Question"), think("hm", "Answer."), user("Another"), assistant("Second.")],
        [{"Answer.", "hmAnswer."}, {"Second."}],
    ),
    "thinking always": (
        [user("Question"), think("hm", "Answer."), user("Another"), think("oh", "Second.")],
        [{"Answer.", "hmAnswer."}, {"Second.", "ohSecond."}],
    ),
    "reasoning": (
        [
            user("Question"),
            assistant("Answer.", reasoning_content="hm"),
            user("Another"),
            assistant("Second.", reasoning_content="oh"),
        ],
        [{"Answer.", "hmAnswer."}, {"Second.", "ohSecond."}],
    ),
    "the user's words again": (
        [user("Same"), assistant("Same"), user("Same"), think("Same", "Same")],
        [{"Same"}, {"Same", "SameSame"}],
    ),
    "unicode and line ends": (
        [user("\n春眠\n"), assistant("\n 不觉 🚀\n"), user(" é "), assistant("\n\nécho \n\n")],
        [{"不觉🚀"}, {"écho"}],
    ),
}


def check(name: str, conversation: str) -> None:
    messages, expected = CONVERSATIONS[conversation]
    try:
        texts, _ = trained_texts(TEMPLATES[name], messages)
    except RecordError as error:
        reasons = (
            "has reasoning_content, which the chat template leaves out",
            "does not suit the chat template (System",
        )
        if not any(reason in str(error) for reason in reasons):
            raise
        return
    assert len(texts) == len(expected), texts
    for text, allowed in zip(texts, expected, strict=True):
        assert words(text) in allowed, texts


@pytest.mark.parametrize("name", FEW)
def test_only_the_assistant_is_trained_on(name: str) -> None:
    for conversation in CONVERSATIONS:
        check(name, conversation)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_only_the_assistant_is_trained_on_by_any_template(name: str) -> None:
    for conversation in CONVERSATIONS:
        check(name, conversation)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("qwen3", ["Answer.<|im_end|>", "<think>\nhm\n</think>\n\nSecond.<|im_end|>"]),
        ("cohere2", ["Answer.<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"]),
        ("phi3", ["Answer.<|end|>", "<think>\nhm\n</think>\n\nSecond.<|end|>\n</s>"]),
        ("glm4moe", ["\n<think></think>\nAnswer.<|user|>", "\n<think>hm</think>\nSecond."]),
    ],
)
def test_turns_and_their_ends_to_the_letter(name: str, texts: list[str]) -> None:
    found, told = trained_texts(TEMPLATES[name], CONVERSATIONS["thinking last"][0])
    assert found[: len(texts)] == texts
    assert told.unended == (name == "glm4moe")


def test_thinking_that_a_template_leaves_out_is_told() -> None:
    _, told = trained_texts(TEMPLATES["qwen3"], CONVERSATIONS["reasoning"][0])
    assert told.sentences() == ["the chat template leaves out the thinking of 1 turns"]


CALLS = [{"type": "function", "function": {"name": "look_up", "arguments": {"word": "star", "times": 3}}}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks a word up.",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
        },
    }
]
CALLING = [
    user("Question"),
    assistant("", tool_calls=CALLS),
    {"role": "tool", "content": "Result", "name": "look_up"},
    assistant("Answer."),
]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_calls_of_tools_are_trained_on_whole_or_refused(name: str) -> None:
    try:
        texts, _ = trained_texts(TEMPLATES[name], CALLING, tools=TOOLS)
    except RecordError:
        return
    assert not any("Result" in text or "Question" in text or "Looks" in text for text in texts), texts
    assert any("Answer." in text for text in texts)
    assert not any("<|tool_response>" in text or "<|start|>functions" in text for text in texts), texts
    (call,) = (text for text in texts if "look_up" in text)
    assert "star" in call
    assert "3" in call
    for mark in ("<tool_call>", "</tool_call>", "<\uff5ctool\u2581calls\u2581begin\uff5c>", "<|tool_call_start|>"):
        assert (mark in call) == (mark in TEMPLATES[name]), call


def test_weights_and_prompts_are_left_out() -> None:
    messages = CONVERSATIONS["two"][0]
    for source in TEMPLATES.values():
        texts, _ = trained_texts(source, messages, untrained=frozenset({1}))
        assert [words(text) for text in texts] == ["Second."]


TEXT = st.lists(
    st.sampled_from(
        ["a", " ", "\n", "<think>", "</think>", "<|im_end|>", "<|im_start|>", "assistant", "[INST]", "é", "🚀"]
    ),
    min_size=1,
    max_size=6,
).map(lambda parts: "x" + "".join(parts) + "y")


def check_text(name: str) -> None:
    for messages, _ in CONVERSATIONS.values():
        rendered, error = None, None
        try:
            rendered = ChatTemplate(TEMPLATES[name], SPECIAL_TOKENS, datetime.now()).render(messages, [], "x:1").text
        except RecordError as refused:
            error = refused
        try:
            ((theirs,), _) = render_jinja_template([messages], chat_template=TEMPLATES[name], **SPECIAL_TOKENS)
        except jinja2.TemplateError:
            assert error is not None
        else:
            assert rendered == theirs


@pytest.mark.parametrize("name", FEW)
def test_texts_are_those_of_transformers(name: str) -> None:
    check_text(name)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_texts_of_any_template_are_those_of_transformers(name: str) -> None:
    check_text(name)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_mask_is_that_of_trls_own_marks(name: str) -> None:
    """TRL's marks hold the generation prompt of some templates, too, and white space behind the end."""
    marked = TEMPLATES.get(f"{name}_training")
    if marked is None:
        return
    for messages, _ in CONVERSATIONS.values():
        try:
            ours, theirs = (
                encoder_of(source).render(Conversation("x:1", messages)) for source in (TEMPLATES[name], marked)
            )
        except RecordError:
            continue
        if ours.text != theirs.text:  # the training template keeps thinking that the other one leaves out
            continue
        assert len(ours.spans) == len(theirs.spans)
        for (start, stop), (begin, end) in zip(ours.spans, theirs.spans, strict=True):
            assert begin <= start < stop <= end
            assert not ours.text[stop:end].strip()
            header = words_of_header(ours.text[begin:start])
            assert header in ("", "assistant", "<think>", "<think></think>", "</think>"), header


def words_of_header(text: str) -> str:
    return "".join(character for character in text if character < "\U00100000" and not character.isspace())


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_whatever_is_said_no_other_word_is_trained_on(name: str) -> None:
    """The user speaks in capitals, and so nothing of what is trained on may be one."""
    source = TEMPLATES[name]

    @settings(max_examples=settings.default.max_examples // 16, suppress_health_check=list(HealthCheck))
    @given(TEXT, TEXT)
    def check_said(first: str, second: str) -> None:
        messages = [user("Q1" + first), assistant(first), user("Q2" + second), assistant(second)]
        try:
            texts, _ = trained_texts(source, messages)
        except RecordError:
            return
        assert len(texts) == 2
        assert not any("Q1" in text or "Q2" in text for text in texts)
        for text, said in zip(texts, (first, second), strict=True):
            answer = said.rpartition("</think>")[2].strip()
            assert answer in text

    check_said()
