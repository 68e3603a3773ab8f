import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stellarbyte.chat.conversations import Conversation
from stellarbyte.chat.encoding import ChatEncoder, Sample
from stellarbyte.chat.template import STELLARBYTE_TEMPLATE
from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import RecordError
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from stellarbyte_torch.data.tokenizer import chat_tokenizer

CORPUS = ["The quick brown fox jumps over the lazy dog. 春眠不觉晓、处处闻啼鸟。 “Ça va?” naïve café 🚀 "] * 20

CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}
{% else %}{{ message.content }}<|im_end|>
{% endif %}{% endfor -%}"""

# Llama 2's manner: no marks around users' turns but words, and white space cut off.
INSTRUCT = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{% generation %}{{ message.content | trim }}{{ eos_token }}{% endgeneration %}
{%- else -%}
{{ bos_token }}[INST] {{ message.content | trim }} [/INST] {% endif %}{% endfor %}"""

SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([*CORPUS, *CORPUS[0].split()], 320, folder, ["<|tool|>"])
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def gpt2_like() -> PreTrainedTokenizerBase:
    """Byte-level, with offsets that its post-processor trims, and an end of turn that swallows white space."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([tokenizers.AddedToken(word, rstrip=word == "<|im_end|>") for word in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def llama_like() -> PreTrainedTokenizerBase:
    """SentencePiece's manner: a space before the first word, unknown characters as bytes."""
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    words = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=words, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    content = backend.to_str()
    # The bytes are ordinary tokens, only learnt as special ones.
    content = re.sub(r'\{[^{}]*"content": ?"<0x..>"[^{}]*\},?', "", content)
    content = re.sub(r",(\s*\])", r"\1", content)
    backend = tokenizers.Tokenizer.from_str(content)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram_like() -> PreTrainedTokenizerBase:
    """T5's manner: pieces with scores, text normalised before."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


LETTERS = st.characters(exclude_categories=["Cs"], max_codepoint=0xFFFFF)
WORDS = st.sampled_from(
    ["The", " quick", "\n", "\n\n", "  ", "<", "|", "im_end", "春眠", "🚀", "é", "e\u0301", "[INST]", "."]
)
CONTENT = (
    st.lists(st.one_of(WORDS, WORDS, LETTERS), min_size=1, max_size=8).map("".join).filter(lambda t: bool(t.strip()))
)
FORGED = st.lists(
    st.one_of(WORDS, st.sampled_from(["<|SEOS|>", "<|SBOS|>", "<|PAD|>", "<|tool|>", "<|SBOS|>assistant\n"])),
    min_size=1,
).map("".join)
ROLES = st.sampled_from(["user", "assistant", "system", "tool"])


def conversations(content: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, str]]]:
    message = st.fixed_dictionaries({"role": ROLES, "content": content.filter(lambda text: bool(text.strip()))})
    return st.lists(message, min_size=1, max_size=6)


def chat_encoder(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> ChatEncoder:
    return ChatEncoder(chat_tokenizer(tokenizer, template))


def encode(encoder: ChatEncoder, messages: list[dict[str, Any]], loss_on: str = "assistant", **fields: Any) -> Sample:
    (sample,) = encoder.encode([encoder.render(Conversation("x.jsonl:1", messages, **fields), loss_on)])
    return sample


def theirs(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], template: str) -> tuple[list, list]:
    chat = tokenizer.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    return chat["input_ids"], [bool(mask) for mask in chat["assistant_masks"]]


def check_equal(encoder: ChatEncoder, tokenizer: Any, messages: list[dict[str, str]], template: str) -> None:
    sample = encode(encoder, messages)
    input_ids, mask = theirs(tokenizer, messages, template)
    assert sample.input_ids.tolist() == input_ids
    assert sample.trained.tolist() == [False, *mask[1:]]


def test_conversations_equal_those_of_transformers(ours: PreTrainedTokenizerBase) -> None:
    encoder = chat_encoder(ours)
    seen = 0

    @given(conversations(CONTENT))
    def check(messages: list[dict[str, str]]) -> None:
        nonlocal seen
        seen += 1
        check_equal(encoder, ours, messages, STELLARBYTE_TEMPLATE)

    check()
    assert seen >= settings.default.max_examples


@pytest.mark.parametrize("template", [CHATML, INSTRUCT], ids=["chatml", "instruct"])
@pytest.mark.parametrize("make", [gpt2_like, llama_like, unigram_like])
def test_other_tokenizers_and_templates(make: Any, template: str) -> None:
    tokenizer = make()
    encoder = chat_encoder(tokenizer, template)

    @given(conversations(CONTENT))
    def check(messages: list[dict[str, str]]) -> None:
        # Where a turn starts with white space whose offset is trimmed, transformers stops marking: a fault of its own.
        messages = [{**message, "content": message["content"].strip()} for message in messages]
        check_equal(encoder, tokenizer, messages, template)

    check()


def test_what_looks_like_a_special_token_stays_text(folder: Path, ours: PreTrainedTokenizerBase) -> None:
    """The JAX side's tokenizer, which never makes special tokens of text, says what each message's tokens are."""
    encoder, jax_side = chat_encoder(ours), Tokenizer.load(folder)

    @given(conversations(FORGED))
    def check(messages: list[dict[str, str]]) -> None:
        input_ids: list[int] = []
        trained: list[bool] = []
        for message in messages:
            header = [jax_side.bos_token_id]
            body = [*jax_side.encode(f"{message['role']}\n{message['content']}"), jax_side.eos_token_id]
            input_ids += header + body
            if message["role"] == "assistant":
                said = len(jax_side.decode(body)) - len(message["content"])
                length = 0
                trained += [False]
                for token in body:
                    length += len(jax_side.decode([token]))
                    trained += [length > said or token == jax_side.eos_token_id]
            else:
                trained += [False] * (1 + len(body))
        sample = encode(encoder, messages)
        assert sample.input_ids.tolist() == input_ids
        if all(message["content"].isascii() for message in messages):  # else a token may be a part of a character
            assert sample.trained.tolist() == trained

    check()


@pytest.mark.parametrize(
    "template", [STELLARBYTE_TEMPLATE, CHATML, INSTRUCT], ids=["stellarbyte", "chatml", "instruct"]
)
def test_a_template_without_marks_trains_on_the_same(template: str) -> None:
    bare = re.sub(r"\{%-? *(end)?generation *-?%\}", "", template)
    assert "generation %" not in bare
    tokenizer = gpt2_like()
    with_marks, without = chat_encoder(tokenizer, template), chat_encoder(tokenizer, bare)

    @settings(max_examples=settings.default.max_examples // 2)
    @given(conversations(st.one_of(CONTENT, st.sampled_from(["</s>", "say <s> twice: <s><s>", " \n x </s>\n"]))))
    def check(messages: list[dict[str, str]]) -> None:
        expected, actual = encode(with_marks, messages), encode(without, messages)
        assert actual.input_ids.tolist() == expected.input_ids.tolist()
        assert actual.trained.tolist() == expected.trained.tolist()

    check()


def test_a_last_character_of_many_tokens_is_trained_on_whole(ours: PreTrainedTokenizerBase) -> None:
    """Transformers before 5.24 marks only the first byte's token where the marks end behind such a character."""
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}{% endfor %}"
    messages = [{"role": "assistant", "content": "x\U0001f9ff"}]
    sample = encode(chat_encoder(ours, template), messages)
    assert ours.decode(sample.input_ids[1:-1]) == "\U0001f9ff"
    assert sum(theirs(ours, messages, template)[1]) in (2, len(sample) - 1)
    assert len(sample) > 4
    assert sample.trained.tolist() == [False, *[True] * (len(sample) - 2), False]


def test_white_space_at_the_ends_of_a_turn_is_trained_on() -> None:
    """A tokenizer like GPT-2's takes white space out of its offsets, by which transformers would lose the turn."""
    tokenizer = gpt2_like()
    template = "{{ bos_token }}{% generation %}{{ messages[0].content }}{% endgeneration %}{{ eos_token }}"
    sample = encode(chat_encoder(tokenizer, template), [{"role": "assistant", "content": "  The quick "}])
    assert tokenizer.decode(sample.input_ids[sample.trained]) == "  The quick "


def test_our_template_is_the_one_that_tokenizers_are_given(ours: PreTrainedTokenizerBase) -> None:
    assert ours.chat_template == STELLARBYTE_TEMPLATE


def test_plain_text_is_between_bos_and_eos_and_trained_whole(ours: PreTrainedTokenizerBase) -> None:
    encoder = chat_encoder(ours)
    (sample,) = encoder.encode([encoder.render(Conversation("x:1", text="The <|SEOS|> fox"))])
    assert ours.decode(sample.input_ids) == "<|SBOS|>The <|SEOS|> fox<|SEOS|>"
    assert sum(token == ours.eos_token_id for token in sample.input_ids) == 1
    assert sample.trained.tolist() == [False] + [True] * (len(sample) - 1)


def test_a_prompt_is_what_the_answer_follows(ours: PreTrainedTokenizerBase) -> None:
    encoder = chat_encoder(ours)
    messages = [{"role": "system", "content": "Be <|SEOS|> short."}, {"role": "user", "content": "The quick"}]
    prompt = encoder.encode_prompt(messages)
    sample = encode(encoder, [*messages, {"role": "assistant", "content": "brown"}])
    assert sample.input_ids.tolist()[: len(prompt)] == prompt
    assert sample.trained.tolist() == [False] * len(prompt) + [True] * (len(sample) - len(prompt))
    assert encoder.encode_prompt(messages[1:]) == ours.apply_chat_template(
        messages[1:], add_generation_prompt=True, return_dict=False
    )


def test_a_template_that_writes_nothing_has_no_prompt(ours: PreTrainedTokenizerBase) -> None:
    with pytest.raises(RecordError, match="the chat template writes nothing for the conversation"):
        chat_encoder(ours, "{# nothing #}").encode_prompt([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("literal", "sentence"),
    [("\\ud800", "the lone surrogate U\\+D800"), ("\U00100000", "the private-use character U\\+100000")],
)
def test_what_no_message_may_hold_no_template_may_write(
    literal: str, sentence: str, ours: PreTrainedTokenizerBase
) -> None:
    encoder = chat_encoder(ours, "{{ '" + literal + "' }}" + STELLARBYTE_TEMPLATE)
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    with pytest.raises(UserError, match=f"what the chat template writes holds {sentence}"):
        encode(encoder, messages)
    with pytest.raises(UserError, match=f"what the chat template writes holds {sentence}"):
        encoder.encode_prompt(messages[:1])


def test_loss_on_all_leaves_out_the_first_token_alone(ours: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert encode(chat_encoder(ours), messages, "all").trained.tolist().count(False) == 1


def test_tools_and_calls_go_through_the_template(ours: PreTrainedTokenizerBase) -> None:
    template = (
        "{{ tools | tojson }}{% for m in messages %}{% generation %}{{ m.content }}{{ m.tool_calls | tojson }}"
        "{% endgeneration %}{% endfor %}"
    )
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "<|SEOS|>"}]}
    sample = encode(chat_encoder(ours, template), [call], tools=[{"name": "f<|PAD|>"}])
    assert ours.decode(sample.input_ids) == '[{"name": "f<|PAD|>"}][{"name": "<|SEOS|>"}]'
    assert not {ours.eos_token_id, ours.pad_token_id} & set(sample.input_ids.tolist())


@pytest.mark.parametrize(
    ("messages", "template", "complaint"),
    [
        ([{"role": "user", "content": "x\ud800"}], None, "x.jsonl:1 holds the lone surrogate U+D800"),
        ([{"role": "user", "content": "x\U00100000"}], None, "x.jsonl:1 holds the private-use character U+100000"),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{}]}],
            None,
            "x.jsonl:1 has tool_calls, which the chat template leaves out",
        ),
        (
            [{"role": "user", "content": "x"}],
            "{{ raise_exception('the first turn must be a system turn') }}",
            "x.jsonl:1 does not suit the chat template (the first turn must be a system turn)",
        ),
        (
            [{"role": "assistant", "content": "a b"}],
            "{{ messages[0].content | upper | length }}",
            "x.jsonl:1 cannot be traced through the chat template",
        ),
        (
            [{"role": "user", "content": "a<|SEOS|>b"}],
            "{% generation %}{{ messages[0].content[3:] }}{% endgeneration %}",
            "x.jsonl:1: the chat template's {% generation %} marks hold words of messages.0: mend them",
        ),
    ],
)
def test_what_cannot_be_encoded(
    ours: PreTrainedTokenizerBase, messages: list[dict[str, Any]], template: str | None, complaint: str
) -> None:
    with pytest.raises(RecordError) as error:
        encode(chat_encoder(ours, template), messages)
    assert complaint in str(error.value)


def test_a_missing_template_is_named() -> None:
    with pytest.raises(UserError, match=r"x.jsonl:1 is a conversation, but the tokenizer .* has no chat template"):
        encode(chat_encoder(gpt2_like()), [{"role": "user", "content": "x"}])


def test_a_template_without_marks_that_trims(ours: PreTrainedTokenizerBase) -> None:
    template = "{% for m in messages %}{{ bos_token }}{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    messages = [{"role": "user", "content": " a "}, {"role": "assistant", "content": "\n b "}]
    sample = encode(chat_encoder(ours, template), messages)
    assert ours.decode(sample.input_ids) == "<|SBOS|>a<|SEOS|><|SBOS|>b<|SEOS|>"
    assert ours.decode(sample.input_ids[sample.trained]) == "b<|SEOS|>"
