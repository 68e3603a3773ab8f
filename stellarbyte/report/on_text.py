"""What a model makes of a text of the user's: the loss of each token, where heads look, and what they are worth."""

import math
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Protocol

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.evaluation.scorer import Encoded, Scorer, character_bytes
from stellarbyte.evaluation.texts import Sources, read_texts
from stellarbyte.report import attention_sums
from stellarbyte.report.measurements import AttentionFacts, Heads, Measured, TokenLoss, TokenLosses

# The most tokens of a row, and the rows that the worth of heads is measured on.
ROW_TOKENS, ROWS = 512, 8

# Stands for the token before a text, which has none.
BEGIN = "[begin]"

METHOD = (
    "the change of the loss of a token, in nats and to first order, if the head gave 0 (Michel et al. 2019): "
    "|Σ gradient · output|, on average over the tokens"
)


class Reader(Protocol):
    """A model that also tells what is inside it."""

    @property
    def scorer(self) -> Scorer:
        """The model as an evaluation uses it."""
        ...

    def attention(self, ids_T: np.ndarray, texts: Sequence[str]) -> AttentionFacts | str:
        """Where each head looks in a row of tokens, which are these texts; or a sentence why that is not known."""
        ...

    def heads(self, rows: Sequence[np.ndarray]) -> tuple[tuple[float | None, ...], ...] | str:
        """The worth of each head over rows of tokens, by METHOD; or a sentence why that is not known."""
        ...


def measure_on_text(reader: Reader, data: str) -> Measured:
    """Losses, attention and heads on the text that `data` names: a file, folder or glob that `prepare` reads.

    The losses and the attention are those of the first document's beginning, the worth of heads is over more of it.

    Raises:
        UserError: there is no text, or the model gives numbers that are not finite.
    """
    scorer = reader.scorer
    texts = read_texts(Sources.of([data], "text", None, None), lambda _: None)
    first = scorer.encode(texts[0].text)
    length = min(ROW_TOKENS, scorer.positions)
    row_T = _row(scorer, first.ids, length)
    if len(row_T) < 2:
        raise UserError(f"--data {data} begins with a document of no token: name a text with some")
    losses = _losses(scorer, texts[0].text, first, row_T)
    left = []
    if len(first.ids) > len(losses.tokens):
        left.append(f"of {len(first.ids):,} tokens the first {len(losses.tokens)} are shown")
    if len(texts) > 1:
        left.append(f"of {len(texts):,} documents the first")
    losses = TokenLosses(losses.tokens, losses.mean, losses.bits_per_byte, "; ".join(left) or None)
    seen = min(attention_sums.TOKENS, len(row_T))
    attention = reader.attention(row_T[:seen], [BEGIN, *(token.text for token in losses.tokens)][:seen])
    rows = _rows(scorer, chain([first.ids], (scorer.encode(text.text).ids for text in texts[1:])), length)
    worth = reader.heads(rows)
    remarks = [found for found in (attention, worth) if isinstance(found, str)]
    heads = None if isinstance(worth, str) else Heads(worth, METHOD, sum(len(row) - 1 for row in rows))
    return Measured(
        heads=heads,
        attention=None if isinstance(attention, str) else attention,
        token_losses=losses,
        remarks=tuple(remarks),
    )


def pieces(text: str, starts: Sequence[int]) -> list[str]:
    """The text of each token by the bytes with which tokens begin; the last is what is left.

    A token that ends within a character has no text, and the token that ends the character has it.
    """
    ends = np.cumsum(character_bytes(text))
    cuts = [*np.searchsorted(ends, np.asarray(starts), side="right").tolist(), len(text)]
    cuts[0] = 0
    return [text[begin:end] for begin, end in pairwise(cuts)]


def _row(scorer: Scorer, ids: np.ndarray, length: int) -> np.ndarray:
    """The beginning of a text behind the token with which texts begin."""
    return np.concatenate([[scorer.begin], ids])[:length]


def _rows(scorer: Scorer, documents: Iterable[np.ndarray], length: int) -> list[np.ndarray]:
    """Up to ROWS rows from the tokens of documents, of which none holds parts of two."""
    rows: list[np.ndarray] = []
    for ids in documents:
        for start in range(0, len(ids), length - 1):
            row = _row(scorer, ids[start : start + length - 1], length)
            if len(row) > 1:
                rows.append(row)
            if len(rows) == ROWS:
                return rows
    return rows


def _losses(scorer: Scorer, text: str, encoded: Encoded, row_T: np.ndarray) -> TokenLosses:
    count = len(row_T) - 1
    inputs, labels = row_T[None, :-1].astype(np.int32), row_T[None, 1:].astype(np.int32)
    losses = -scorer.score(inputs, labels, np.array([count])).log_p_BT[0].astype(np.float64)
    if not np.isfinite(losses).all():
        bad = int(np.flatnonzero(~np.isfinite(losses))[0])
        raise UserError(
            f"{scorer.name} gives token {bad + 1} of the text a loss of {losses[bad]}: its weights are of no use"
        )
    end = int(encoded.starts[count]) if count < len(encoded.ids) else len(text.encode())
    shown = text.encode()[:end].decode(errors="ignore")
    words = pieces(shown, encoded.starts[:count].tolist())
    tokens = tuple(TokenLoss(word, float(loss)) for word, loss in zip(words, losses, strict=True))
    return TokenLosses(tokens, float(losses.mean()), float(losses.sum()) / math.log(2) / max(1, end))
