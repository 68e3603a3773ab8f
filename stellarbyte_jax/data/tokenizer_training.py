"""Learns a byte-level BPE vocabulary from a stream of texts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers

from stellarbyte.errors import UserError
from stellarbyte.files import json_text
from stellarbyte_jax.data.tokenizer import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, SPECIAL_TOKENS, Tokenizer

# Where merges may not cross, in the manner of GPT-4 and Llama 3, with two changes: CJK runs stand apart from Latin
# words ("使用Python代码"), and an English contraction ends its word, so that the literal 'text' is not cut after 't.
# documents.pieces knows where this pattern always ends a match: keep the two in step.
_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
_SPLIT = "|".join(
    (
        rf"[{_CJK}]+",
        r"(?i:'(?:s|t|re|ve|m|ll|d))(?!\p{L})",
        rf"[^\r\n\p{{L}}\p{{N}}]?[[\p{{L}}\p{{M}}]&&[^{_CJK}]]+",  # a word, with the one sign or space before it
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",  # indentation, but for the last space, which joins the word behind it
        r"\s+",
    )
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- bos_token + message['role'] + '\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
    {%- else -%}
        {{- message['content'] + eos_token -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- bos_token + 'assistant\\n' -}}{%- endif -%}
"""


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    output: Path,
    extra_special_tokens: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` tokens from a stream of texts and write the tokenizer's folder.

    Memory grows with the number of different words, not with the length of the stream. A corpus too small for
    `vocab_size` gives a smaller vocabulary, which `report` is told; a model's vocabulary may be the larger of the two.

    Raises:
        UserError: the vocabulary cannot hold the bytes and special tokens; a special token is unfit; there is no text.
    """
    special_tokens = [*SPECIAL_TOKENS, *extra_special_tokens]
    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size {vocab_size} is smaller than the 256 bytes and {len(special_tokens)} special tokens: "
            f"use at least {smallest}"
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Every document begins so in training. We add it ourselves; this is for Hugging Face's libraries.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A", pair=f"{BOS_TOKEN} $A $B", special_tokens=[(BOS_TOKEN, 0)]
    )
    _check_special_tokens(tokenizer, special_tokens)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # An error raised by an iterator that runs inside the trainer would come back as the trainer's own: keep it.
    stream = _FirstError(texts)
    try:
        tokenizer.train_from_iterator(stream, trainer)
    except Exception:
        if stream.error is not None:
            raise stream.error from None
        raise
    if stream.error is not None:
        raise stream.error
    if stream.count == 0:
        raise UserError("the tokenizer cannot be trained on an empty corpus: name an input that holds text")
    learned_size = tokenizer.get_vocab_size()
    if learned_size < vocab_size:
        report(
            f"The corpus is too small for vocab_size {vocab_size}: it gave {learned_size} tokens. "
            "The model's vocabulary may stay larger; its last tokens are then never seen."
        )
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json_text(_hugging_face_config(extra_special_tokens)),
        "chat_template.jinja": CHAT_TEMPLATE,
    }
    Tokenizer.save_files(files, output)
    return Tokenizer.load(output)


class _FirstError:
    """An iterable that counts its items and remembers the error that ended it."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.count = 0
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                self.count += 1
                yield text
        except Exception as error:
            self.error = error
            raise


def _check_special_tokens(tokenizer: tokenizers.Tokenizer, special_tokens: Sequence[str]) -> None:
    """Refuse special tokens that BPE could also build from ordinary text, for then text could forge them."""
    for index, token in enumerate(special_tokens):
        if token in special_tokens[:index]:
            raise UserError(f"extra_special_tokens {token!r} is there twice: name each special token once")
        # No merge crosses a boundary of the pre-tokenizer, so a token that has one inside arises from no text.
        if len(tokenizer.pre_tokenizer.pre_tokenize_str(token)) < 2:
            raise UserError(f"extra_special_tokens {token!r} looks like ordinary text: write it as <|name|>")


def _hugging_face_config(extra_special_tokens: Sequence[str]) -> dict[str, object]:
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS_TOKEN,
        "eos_token": EOS_TOKEN,
        "pad_token": PAD_TOKEN,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",  # batches of unequal prompts are generated from their right end
    }
    if extra_special_tokens:
        config["additional_special_tokens"] = list(extra_special_tokens)
    return config
