"""Learns a byte-level BPE vocabulary from a stream of texts."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from stellarbyte.chat.template import STELLARBYTE_TEMPLATE
from stellarbyte.errors import UserError
from stellarbyte.files import holds, json_text
from stellarbyte.folder_lock import folder_lock
from stellarbyte_jax.bounds import MOST_TOKENS, check_whole
from stellarbyte_jax.data.pre_tokenizers import DEFAULT, PATTERNS, pre_tokenizer
from stellarbyte_jax.data.special_tokens import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, SPECIAL_TOKENS
from stellarbyte_jax.data.tokenizer import Tokenizer

# Longer words are given to the trainer in parts. A merge reads each word that it changes from end to end, so unbroken
# text (base64, a genome, a script without spaces) would cost its length times the vocabulary.
_LONGEST_WORD = 256


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    output: Path,
    extra_special_tokens: Sequence[str] = (),
    report: Callable[[str], None] = print,
    learning: Callable[[], None] = lambda: None,
    *,
    pattern: str = DEFAULT,
    force: bool = False,
) -> Tokenizer:
    """Learns a vocabulary of `vocab_size` tokens from a stream of texts, and writes the tokenizer's folder.

    Memory grows with the number of different words, not with the length of the stream. A corpus too small for
    `vocab_size` gives a smaller vocabulary, and `report` is told; a model's vocabulary may have the larger size.
    `learning` is called several times a second once all texts are read. `pattern` is a name in PATTERNS: no merge
    crosses the words that it finds. Only `force` replaces another tokenizer in
    `output`, because token shards and runs may depend on it.

    Raises:
        UserError: the vocabulary cannot hold the bytes and special tokens; a special token looks like text or is named
            twice; there is no text; `output` holds another tokenizer, is being written by another process, or cannot be
            written.
    """
    with folder_lock(output, doing="tokenizer train"):
        files = _learn(texts, vocab_size, PATTERNS[pattern], extra_special_tokens, report, learning)
        if not _is_there(files, output, force):
            Tokenizer.save_files(files, output)
        else:
            report(f"{output} holds this very tokenizer already.")
    return Tokenizer.load(output)


def _is_there(files: Mapping[str, str], output: Path, force: bool) -> bool:
    """Whether `output` holds these files; raises UserError if it holds others of the same names, unless `force`."""
    there = [name for name in files if (output / name).is_file()]
    different = [name for name in there if not holds(output / name, files[name].encode())]
    if different and not force:
        raise UserError(
            f"{output} holds another tokenizer ({different[0]} differs), on which token shards and runs may stand: "
            "name another folder, or use --force to replace it"
        )
    return len(there) == len(files) and not different


def _learn(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str,
    extra_special_tokens: Sequence[str],
    report: Callable[[str], None],
    learning: Callable[[], None],
) -> dict[str, str]:
    """The tokenizer's files, by name."""
    special_tokens = [*SPECIAL_TOKENS, *extra_special_tokens]
    smallest = 256 + len(special_tokens)
    check_whole("vocab_size", vocab_size, 1, MOST_TOKENS)
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size {vocab_size} is smaller than the 256 bytes and {len(special_tokens)} special tokens: "
            f"use at least {smallest}"
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(pattern)
    tokenizer.decoder = decoders.ByteLevel()
    _check_special_tokens(tokenizer, special_tokens)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.pre_tokenizer = pre_tokenizer(pattern, _LONGEST_WORD)
    stream = _FirstError(texts)
    _train(tokenizer, stream, trainer, learning)
    tokenizer.pre_tokenizer = pre_tokenizer(pattern)
    if stream.count == 0:
        raise UserError("the tokenizer cannot be trained on an empty corpus: name an input that holds text")
    learned_size = tokenizer.get_vocab_size()
    if learned_size < vocab_size:
        report(
            f"The corpus is too small for vocab_size {vocab_size}: it gave {learned_size} tokens. "
            "The model's vocabulary may stay larger; its last tokens are then never seen."
        )
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "tokenizer_config.json": json_text(_hugging_face_config(extra_special_tokens)),
        "chat_template.jinja": STELLARBYTE_TEMPLATE,
    }


class _FirstError:
    """An iterable that counts its items, remembers the error that ended it, and can be ended from outside."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.count = 0
        self.error: Exception | None = None
        self.ended, self.stopped = False, False

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                if self.stopped:
                    return
                self.count += 1
                yield text
        except Exception as error:
            self.error = error
            raise
        finally:
            self.ended = True


def _train(
    tokenizer: tokenizers.Tokenizer, stream: _FirstError, trainer: trainers.BpeTrainer, learning: Callable[[], None]
) -> None:
    """Trains in a thread of its own: the trainer does not notice an interruption, which must not wait for it."""
    failures: list[Exception] = []

    def train() -> None:
        try:
            tokenizer.train_from_iterator(stream, trainer)
        except Exception as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    thread = threading.Thread(target=train, name="train", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
            if stream.ended:
                learning()
    finally:
        stream.stopped = True
    # An error that the iterator raises inside the trainer comes back as an error of the trainer's, or not at all.
    for error in filter(None, (stream.error, *failures)):
        raise error


def _check_special_tokens(tokenizer: tokenizers.Tokenizer, special_tokens: Sequence[str]) -> None:
    """Refuses special tokens that BPE could also build from ordinary text, because text could then forge them."""
    for index, token in enumerate(special_tokens):
        if token in special_tokens[:index]:
            raise UserError(f"extra_special_tokens {token!r} is there twice: name each special token once")
        if any("\ud800" <= character <= "\udfff" for character in token):
            raise UserError(
                f"extra_special_tokens {token!r} cannot be written in UTF-8: name it without lone surrogates"
            )
        # No merge crosses a boundary of the pre-tokenizer, so no text can give a token with a boundary inside it.
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
