"""Text that is cut at stop strings, against the whole text searched character by character."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte.sampling import Sampling
from stellarbyte_jax.config import ByteConfig, DataConfig
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.inference.generate import Generator
from stellarbyte_jax.inference.text import Answer, generate_text
from test_jax.conftest import VOCAB_SIZE
from test_jax.tiny import tiny_config, tiny_model


def cut(text: str, stop: Sequence[str]) -> str:
    """Reading character by character, up to where the first complete stop string began, the longest if several."""
    for end in range(1, len(text) + 1):
        complete = [len(s) for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - max(complete)]
    return text


@pytest.fixture(scope="module")
def tokenizer(small_data: DataConfig) -> Tokenizer:
    return Tokenizer.load(small_data.tokenizer)


class Parrot(Generator):
    """Says the tokens that it was given, so many at a time."""

    def __init__(self, config: ByteConfig, rows: list[list[int]], chunk: int) -> None:
        self.config, self._rows, self._chunk = config, rows, chunk
        self.context = 1000
        self.chunks = 0

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        seed: int = 0,
        on_tokens: Callable[[np.ndarray], np.ndarray | None] | None = None,
    ) -> list[list[int]]:
        del prompts, max_new_tokens, sampling, seed
        if on_tokens is None:
            return self._rows
        for tokens in self._tokens():
            self.chunks += 1
            ended = on_tokens(tokens)
            if ended is not None and ended.all():
                break
        return self._rows

    def _tokens(self) -> Iterator[np.ndarray]:
        longest = max(map(len, self._rows)) + 1
        table = np.full((len(self._rows), longest), self.config.pad_token_id, np.int32)
        for line, row in zip(table, self._rows, strict=True):
            line[: len(row) + 1] = [*row, self.config.eos_token_id]
        for start in range(0, longest, self._chunk):
            yield table[:, start : start + self._chunk]


TEXT = "eine Über-größe 。。 \N{GRINNING FACE} ab。c\n\nEnde"


def bytewise(tokenizer: Tokenizer, text: str) -> list[int]:
    """A token for each byte, so that no character but ASCII is whole in one."""
    ids = [token_id for byte in text.encode() for token_id in tokenizer.encode(bytes([byte]))]
    assert tokenizer.decode(ids) == text
    return ids


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize(
    "stop",
    [
        (),
        ("é",),
        ("ö",),
        ("\n\n", "。c"),
        ("。 ", "。。 "),
        ("größe", "ß"),
        ("\N{GRINNING FACE}",),
        ("\n\nEnde!", "xyz"),
    ],
    ids=str,
)
def test_characters_that_tokens_cut_through(tokenizer: Tokenizer, stop: tuple[str, ...], chunk: int) -> None:
    config = tiny_config(vocab_size=VOCAB_SIZE)
    rows = [bytewise(tokenizer, TEXT), tokenizer.encode(TEXT), bytewise(tokenizer, "ab"), []]
    parrot, streamed = Parrot(config, rows, chunk), [""] * len(rows)

    def on_text(row: int, text: str) -> None:
        streamed[row] += text

    answers = generate_text(parrot, tokenizer, [""] * len(rows), 100, stop=stop, on_text=on_text)
    texts = [cut(TEXT, stop), cut(TEXT, stop), "ab", ""]
    assert [answer.text for answer in answers] == texts == streamed
    assert generate_text(parrot, tokenizer, [""] * len(rows), 100, stop=stop) == answers
    for row, answer in zip(rows, answers, strict=True):
        until = tokenizer.decode(row[: answer.new_tokens])
        assert until.startswith(answer.text)
        if answer.new_tokens < len(row):
            assert any(s in until for s in stop) and not any(
                s in tokenizer.decode(row[: answer.new_tokens - 1]) for s in stop
            )


def test_reading_ends_once_every_row_is_complete(tokenizer: Tokenizer) -> None:
    parrot = Parrot(
        tiny_config(vocab_size=VOCAB_SIZE), [bytewise(tokenizer, text) for text in ("ab.cdefgh", "a.bcdefgh")], 2
    )
    assert generate_text(parrot, tokenizer, ["", ""], 100, stop=["."]) == [Answer("ab", 1, 3), Answer("a", 1, 2)]
    assert parrot.chunks == 2


def test_a_character_that_never_came_whole(tokenizer: Tokenizer) -> None:
    rows = [[*bytewise(tokenizer, "ab"), tokenizer.encode(b"\xc3")[0]]]
    parrot = Parrot(tiny_config(vocab_size=VOCAB_SIZE), rows, 2)
    assert generate_text(parrot, tokenizer, [""], 100) == [Answer("ab\ufffd", 1, 3)]
    assert generate_text(parrot, tokenizer, [""], 100, stop=["b\ufffd", "bx"]) == [Answer("a", 1, 3)]


def test_a_models_text_ends_where_its_whole_text_would(tokenizer: Tokenizer) -> None:
    """Every row at its own place, as it does alone."""
    config = tiny_config(vocab_size=VOCAB_SIZE, max_position_embeddings=128)
    generator, sampling = Generator(tiny_model(config, seed=1)), Sampling(1.0)
    prompts = ["a", "a star é", "deep"]
    whole = [answer.text for answer in generate_text(generator, tokenizer, prompts, 40, sampling)]
    stops = {text[place : place + length] for text in whole for place in (3, 8, 15) for length in (1, 2, 4)} - {""}
    assert len(stops) > 10
    for stop in sorted(stops):
        answers = generate_text(generator, tokenizer, prompts, 40, sampling, stop=[stop])
        assert [answer.text for answer in answers] == [cut(text, [stop]) for text in whole]


def test_an_empty_stop_string_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="stop '' would end every answer at once"):
        generate_text(Parrot(tiny_config(), [[]], 1), tokenizer, [""], 4, stop=["x", ""])


def test_an_answer_ends_where_the_context_does(tokenizer: Tokenizer) -> None:
    config = tiny_config(vocab_size=VOCAB_SIZE, max_position_embeddings=16)
    short, long = generate_text(Generator(tiny_model(config, seed=1)), tokenizer, ["", "a"], 40, Sampling(1.0))
    room = 16 - long.prompt_tokens
    assert (short.prompt_tokens, long.prompt_tokens) == (1, 2)
    for answer in (short, long):
        assert answer.cut_at == (room if answer.new_tokens == room else None)
    assert room in (short.cut_at, long.cut_at)
