"""Compares two tokenizers: their tokens, the texts that come back, special tokens and chat templates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from convert.verifying.checks import Check
from convert.verifying.lines import lines
from convert.verifying.side import TokenIds
from stellarbyte.chat.template import ChatTemplate
from stellarbyte.errors import shown
from stellarbyte.records.bad_records import RecordError
from stellarbyte_jax.data.chat_template import chat_tokenizer
from stellarbyte_jax.data.tokenizer import Tokenizer

_CONVERSATION = (
    {"role": "user", "content": "What is a byte?\n\n- 8 bits? <|SEOS|>"},
    {"role": "assistant", "content": "Eight bits: 八位。"},
    {"role": "user", "content": "And a star?  "},
)

_SPECIAL = ("bos_token", "eos_token", "pad_token")

# Stands for the conversation if the template raises an error of its own.
_REFUSED = "(the template refuses the conversation)"


class Texts(Protocol):
    """What a tokenizer makes of texts; a special token's name in a text is text."""

    exact: bool
    """Whether every text comes back as it was, because nothing normalises it."""

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids, without special tokens around a text."""

    def decode(self, ids: TokenIds) -> str:
        """The text of token ids."""

    def special_ids(self) -> dict[str, int | None]:
        """bos_token, eos_token and pad_token -> id."""

    def conversation(self) -> str | None:
        """A conversation by the chat template; None if there is no template."""


class RunTexts:
    """The tokenizer of a run, as training uses it."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._tokenizer = Tokenizer(files, "of the run")
        self.exact = not self._tokenizer.changes

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """As in `Texts`."""
        return [self._tokenizer.encode(text) for text in texts]

    def decode(self, ids: TokenIds) -> str:
        """As in `Texts`."""
        return self._tokenizer.decode(ids)

    def special_ids(self) -> dict[str, int | None]:
        """As in `Texts`."""
        named, vocabulary = self._tokenizer.special_tokens, self._tokenizer.vocabulary
        return {name: vocabulary.get(named[name]) if name in named else None for name in _SPECIAL}

    def conversation(self) -> str | None:
        """As in `Texts`."""
        tokenizer = chat_tokenizer(self._tokenizer, None)
        if tokenizer.template is None:
            return None
        messages = [dict(message) for message in _CONVERSATION]
        template = ChatTemplate(tokenizer.template, tokenizer.special_tokens)
        try:
            return str(template.render(messages, [], "a conversation", add_generation_prompt=True).text)
        except RecordError:
            return _REFUSED


class FolderTexts:
    """The tokenizer of a folder, as Transformers loads it."""

    def __init__(self, folder: Path) -> None:
        from stellarbyte_torch.model_folder import load_tokenizer

        self._tokenizer: Any = load_tokenizer(folder)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        self.exact = backend is not None and backend.normalizer is None

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """As in `Texts`."""
        # Not verbose, because it warns of texts that are longer than the model's context.
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return [list(ids) for ids in self._tokenizer(list(texts), **options)["input_ids"]]

    def decode(self, ids: TokenIds) -> str:
        """As in `Texts`."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def special_ids(self) -> dict[str, int | None]:
        """As in `Texts`."""
        return {name: getattr(self._tokenizer, f"{name}_id") for name in _SPECIAL}

    def conversation(self) -> str | None:
        """As in `Texts`."""
        if not self._tokenizer.chat_template:
            return None
        messages = [dict(message) for message in _CONVERSATION]
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception:  # noqa: BLE001 - a template may raise anything
            return _REFUSED


def compare(ours: Texts, theirs: Texts, prompts: Sequence[str], names: tuple[str, str]) -> list[Check]:
    """The checks of two tokenizers, on a thousand lines and the prompts; `names` are the sides' in sentences."""
    return [
        _round_trip(ours, theirs, [*lines(), *prompts], names),
        _special_tokens(ours.special_ids(), theirs.special_ids(), names),
        _conversation(ours.conversation(), theirs.conversation(), names),
    ]


def _round_trip(ours: Texts, theirs: Texts, texts: Sequence[str], names: tuple[str, str]) -> Check:
    a, b = ours.encode(texts), theirs.encode(texts)
    differing = [text for text, x, y in zip(texts, a, b, strict=True) if x != y]
    differences = []
    if differing:
        differences.append(
            f"the tokenizers turn {len(differing)} of {len(texts)} lines into different tokens, such as "
            f"{shown(differing[0])}"
        )
    changed = {}
    for side, name, ids in ((ours, names[0], a), (theirs, names[1], b)):
        others = [text for text, line in zip(texts, ids, strict=True) if side.decode(line) != text]
        changed[name] = len(others)
        if others and side.exact:
            differences.append(
                f"the tokenizer of {name} does not give back {len(others)} of {len(texts)} lines, such as "
                f"{shown(others[0])}"
            )
    figures = {"lines": len(texts), "of_other_tokens": len(differing), "changed_when_decoded": changed}
    words = f"{len(texts):,} lines have the same tokens"
    kept = ", and come back as they were" if not any(changed.values()) else ""
    return Check("tokenizer", words + kept, figures, differences)


def _special_tokens(a: dict[str, int | None], b: dict[str, int | None], names: tuple[str, str]) -> Check:
    differences = [
        f"{name} is {a[name]} in {names[0]}, but {b[name]} in {names[1]}" for name in a if a[name] != b[name]
    ]
    words = ", ".join(f"{name} {number}" for name, number in a.items())
    return Check("special tokens", words, {"special_tokens": {names[0]: a, names[1]: b}}, differences)


def _conversation(a: str | None, b: str | None, names: tuple[str, str]) -> Check:
    if a == b:
        skipped = "neither side has a template" if a is None else None
        return Check("chat template", "" if a is None else "a conversation reads the same", skipped=skipped)
    without = [name for name, text in zip(names, (a, b), strict=True) if text is None]
    difference = (
        f"{without[0]} has no chat template"
        if without
        else f"the chat template makes another conversation in {names[1]} than in {names[0]}"
    )
    return Check("chat template", "", differences=[difference])
