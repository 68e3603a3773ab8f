"""The rows of tokens on which two models are compared: prompts, padded rows, packed rows and a long one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from convert.verifying.side import TokenIds

ROWS = 6

# Rows whose next tokens make the loss that is differentiated.
LOSS_ROWS = 2

# A row without a window to look beyond; with one, the long row is longer than twice the window. Of larger windows than
# MOST_LONG allows for, no CPU would come to an end.
_LONG, MOST_LONG = 160, 16_384
_BEYOND_WINDOWS = 33

# Bytes that the hidden states of all layers, or the logits, may take of one batch. The rows are evaluated whole, but
# only as many of their positions are compared as this holds.
_KEPT_BYTES = 24 << 20


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, int32 [B, T]. A token sees its own segment alone, and segment 0 is padding.

    columns: the positions whose hidden states in every layer, and whose logits, are compared.
    """

    name: str
    input_ids: np.ndarray
    position_ids: np.ndarray
    segment_ids: np.ndarray
    columns: np.ndarray

    @property
    def real(self) -> np.ndarray:
        """Whether there is a token, no padding, at the columns: bool [B, C]."""
        return self.segment_ids[:, self.columns] != 0

    @property
    def labels(self) -> np.ndarray:
        """The next token of the same document, or -100 where it ends: int32 [B, T]."""
        following = np.roll(self.segment_ids, -1, axis=1) == self.segment_ids
        following[:, -1] = False
        labels = np.where(following & (self.segment_ids != 0), np.roll(self.input_ids, -1, axis=1), -100)
        return labels.astype(np.int32)


@dataclass(frozen=True)
class Documents:
    """Documents of random tokens, each in a padded row of its own and in packed rows together with others.

    places: (document, its first column in a packed row, that row, its length there).
    """

    padded: Batch
    packed: Batch
    places: tuple[tuple[int, int, int, int], ...]

    def apart(self, padded_BTX: np.ndarray, packed_BTX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What two arrays say of each packed token: (by itself, in company), [tokens, X] each."""
        by_itself, in_company = [], []
        for document, start, row, length in self.places:
            first = int(np.argmax(self.padded.segment_ids[document] != 0))
            by_itself.append(padded_BTX[document, first : first + length])
            in_company.append(packed_BTX[row, start : start + length])
        return np.concatenate(by_itself), np.concatenate(in_company)


@dataclass(frozen=True)
class Sizes:
    """What decides how many rows and columns are compared.

    vocab_size, layers, hidden_size: the model's. context: its context in tokens, without stretching. longest: the same
    with it. window: tokens that a token sees, if they are limited. special_ids: tokens that no random row may hold.
    """

    vocab_size: int
    layers: int
    hidden_size: int
    context: int
    longest: int
    window: int | None
    special_ids: frozenset[int]

    def columns(self, batch_size: int, length: int) -> np.ndarray:
        """As many positions as fit, evenly spread; the last is among them."""
        widest = max(self.vocab_size, (self.layers + 2) * self.hidden_size) * 4
        count = min(length, max(1, _KEPT_BYTES // (widest * batch_size)))
        return np.unique(np.linspace(length - 1, 0, count).round().astype(np.int64))


def continued(prompts: Sequence[TokenIds], tokens_BS: np.ndarray, sizes: Sizes, pad: int) -> Batch:
    """Each prompt with its continuation [B, S], padded on the right."""
    lengths = [len(prompt) + tokens_BS.shape[1] for prompt in prompts]
    shape = (len(prompts), max(lengths))
    input_ids, segment_ids = np.full(shape, pad, np.int32), np.zeros(shape, np.int32)
    for row, (prompt, tokens) in enumerate(zip(prompts, tokens_BS.tolist(), strict=True)):
        input_ids[row, : lengths[row]], segment_ids[row, : lengths[row]] = [*prompt, *tokens], 1
    # Padding repeats the last token's position, because dynamic scaling depends on the largest.
    last = np.array(lengths)[:, None] - 1
    position_ids = np.minimum(np.arange(shape[1]), last).astype(np.int32)
    return Batch("prompts", input_ids, position_ids, segment_ids, sizes.columns(*shape))


def documents(length: int, sizes: Sizes, pad: int) -> Documents:
    """`ROWS` documents in rows of `length` tokens: padded on the left and on the right in turn, and packed."""
    shape, generator = (ROWS, length), np.random.default_rng(0)
    lengths = [max(1, length // 3 + number % max(1, length // 6)) for number in range(ROWS)]
    texts = [_random_tokens(size, sizes, generator) for size in lengths]
    columns = sizes.columns(*shape)

    padded = _empty("padded", shape, columns)
    padded.input_ids[...] = pad
    for row, text in enumerate(texts):
        first = length - len(text) if row % 2 == 0 else 0
        there = np.s_[row, first : first + len(text)]
        padded.input_ids[there], padded.segment_ids[there] = text, 1
        padded.position_ids[row] = np.clip(np.arange(length) - first, 0, len(text) - 1)

    packed, places = _empty("packed", shape, columns), []
    for row in range(ROWS):
        start, document = 0, row
        while start < length:
            text = texts[document][: length - start]
            there = np.s_[row, start : start + len(text)]
            packed.input_ids[there], packed.position_ids[there] = text, np.arange(len(text))
            packed.segment_ids[there] = packed.segment_ids[row].max() + 1
            places.append((document, start, row, len(text)))
            start, document = start + len(text), (document + 1) % ROWS
    return Documents(padded, packed, tuple(places))


def to_learn(batch: Batch, sizes: Sizes) -> Batch:
    """The first rows of a batch. Its columns are those whose next tokens make the loss: their logits are held."""
    ids, positions, segments = (x[:LOSS_ROWS] for x in (batch.input_ids, batch.position_ids, batch.segment_ids))
    few = Batch("to learn", ids, positions, segments, batch.columns)
    places = np.flatnonzero((few.labels >= 0).any(axis=0))
    return replace(few, columns=places[sizes.columns(len(few.input_ids), len(places))] if len(places) else places)


def long_row(sizes: Sizes) -> Batch:
    """One row that is longer than twice the window, and past the context that dynamic scaling stretches, if it can."""
    wanted = _LONG if sizes.window is None else 2 * sizes.window + _BEYOND_WINDOWS
    if sizes.longest > sizes.context:
        wanted = max(wanted, sizes.context + _BEYOND_WINDOWS)
    length = min(wanted, sizes.longest, MOST_LONG)
    shape = (1, length)
    input_ids = _random_tokens(length, sizes, np.random.default_rng(1)).reshape(shape)
    position_ids = np.arange(length, dtype=np.int32).reshape(shape)
    return Batch("long", input_ids, position_ids, np.ones(shape, np.int32), sizes.columns(*shape))


def _empty(name: str, shape: tuple[int, int], columns: np.ndarray) -> Batch:
    ids, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    return Batch(name, ids, positions, segments, columns)


def _random_tokens(count: int, sizes: Sizes, generator: np.random.Generator) -> np.ndarray:
    ordinary = np.setdiff1d(np.arange(sizes.vocab_size, dtype=np.int32), list(sizes.special_ids))
    return generator.choice(ordinary if len(ordinary) else np.zeros(1, np.int32), count).astype(np.int32)
