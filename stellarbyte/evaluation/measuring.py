"""Measures documents under a model: the figures of each domain, and the loss of each document."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.evaluation.batches import Row, score_rows
from stellarbyte.evaluation.figures import Figures
from stellarbyte.evaluation.scorer import Scorer
from stellarbyte.evaluation.texts import Text
from stellarbyte.evaluation.windows import Windows
from stellarbyte.progress import Update

# The bytes of a block of a long text: what two models make of tokens that stand close together is not independent.
BLOCK_BYTES = 2048


@dataclass(frozen=True)
class Losses:
    """The loss of a document by blocks of about BLOCK_BYTES: nats of the tokens that begin in each, and its bytes."""

    nats: np.ndarray
    bytes: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What was measured of a model: which, how, the figures of each domain, and the loss of each document."""

    facts: dict[str, Any]
    windows: Windows
    domains: dict[str, Figures]
    documents: list[Losses]

    @property
    def whole(self) -> Figures:
        """The figures of all domains together."""
        return sum(self.domains.values(), Figures())

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        settings = {"window": self.windows.window, "stride": self.windows.stride}
        domains = {name: figures.to_dict() for name, figures in self.domains.items()}
        return {**self.facts, **settings, **self.whole.to_dict(), "domains": domains}


def measure(
    scorer: Scorer,
    texts: Sequence[Text],
    windows: Windows,
    batch_tokens: int,
    update: Update = lambda _done, _whole: None,
) -> Measured:
    """The figures of the texts.

    Args:
        scorer: the model.
        texts: the documents; each is read on its own, behind the scorer's token before a text.
        windows: how long ones are cut.
        batch_tokens: see score_rows.
        update: called with the bytes done and all bytes.

    Raises:
        UserError: the loss is not finite, or no text makes a token.
    """
    domains: dict[str, Figures] = {}
    documents: list[_Document] = []

    def rows() -> Iterator[tuple[tuple[_Document, int], Row]]:
        for text in texts:
            document = _Document(scorer, text)
            documents.append(document)
            domains.setdefault(text.domain, Figures()).add_text(text.text, document.size)
            for start, stop, scored in windows.cut(len(document.starts)):
                yield (document, stop - 1 - scored), Row(document.ids[start:stop], scored)

    whole, done = sum(len(text.text.encode()) for text in texts), 0.0
    update(0, whole)
    for (document, first), scores in score_rows(scorer, rows(), batch_tokens):
        domains[document.domain].add_tokens(*scores)
        document.add(first, scores.log_p_N)
        done += document.size * len(scores.log_p_N) / len(document.starts)
        update(round(done), whole)
    found = Measured(dict(scorer.facts), windows, domains, [document.losses for document in documents])
    if not found.whole.tokens:
        raise UserError("the texts of --data make no tokens: name some that hold more")
    if not math.isfinite(found.whole.nats):
        raise UserError(
            f"the loss of {scorer.name} on these texts is {found.whole.nats}: its weights are of no use, or too large "
            "for its dtype; take an earlier checkpoint, or --dtype float32 if this was another"
        )
    return found


class _Document:
    """A document's tokens, and the losses of its blocks as they come in.

    ids: int32 [1 + N], behind the token before a text. starts: for each of the N, its block. size: bytes.
    """

    def __init__(self, scorer: Scorer, text: Text) -> None:
        encoded, content = scorer.encode(text.text), np.frombuffer(text.text.encode(), np.uint8)
        self.domain, self.size = text.domain, len(content)
        self.ids = np.concatenate([[scorer.begin], encoded.ids]).astype(np.int32)
        count = max(1, round(self.size / BLOCK_BYTES))
        # A character of several bytes belongs to one block, wherever a tokenizer cuts it.
        begins = np.flatnonzero((content & 0xC0) != 0x80)
        edges = begins[np.searchsorted(begins, np.arange(count) * self.size // count)]
        character = np.searchsorted(begins, np.clip(encoded.starts, 0, self.size - 1), "right") - 1
        self.starts = np.searchsorted(edges, begins[character], "right") - 1
        self.losses = Losses(np.zeros(count), np.diff([*edges, self.size]))

    def add(self, first: int, log_p_N: np.ndarray) -> None:
        """Adds the loss of tokens from number `first` on."""
        blocks_N = self.starts[first : first + len(log_p_N)]
        self.losses.nats[:] -= np.bincount(blocks_N, log_p_N.astype(np.float64), len(self.losses.nats))
