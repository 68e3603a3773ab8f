"""Asks a judge how surprising a turn is, where that can matter."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from stellarbyte.memory.entries import Found
from stellarbyte.memory.gate.rule import Candidate, Verdict
from stellarbyte.memory.gate.surprise import GIVEN
from stellarbyte.memory.protocols import Judge


def judged(
    candidate: Candidate,
    judge: Judge | None,
    gate: Callable[[Candidate], Verdict | None],
    search: Callable[[str, int], Sequence[Found]],
) -> Candidate:
    """The candidate with its surprise: its loss after what a search finds, less its loss after itself.

    The latter is what the text costs a model that knows it, so that long and rare words do not count as news. Most
    turns are refused however surprising they are, such as questions. For these the judge, a model, is not asked.

    gate: what it decides on a candidate. search: the entries that a text finds, and how many at most.
    """
    if judge is None or candidate.kind != "turn":
        return candidate
    name = f"{judge.hash} beyond itself"  # a store may have the losses alone of an older version
    verdict = gate(replace(candidate, loss=math.inf, judge=name))
    if verdict is not None and verdict.outcome == "refused":
        return candidate
    given = "\n".join(one.entry.text for one in search(candidate.text, GIVEN))
    surprise = judge.loss(candidate.text, given) - judge.loss(candidate.text, candidate.text)
    return replace(candidate, loss=surprise, judge=name)
