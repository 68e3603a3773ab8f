"""Compares what two models compute: hidden states, logits, cached decoding, greedy choices and gradients."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convert.verifying import rows
from convert.verifying.checks import Check, Difference, in_words, is_within, relative_error, worst
from convert.verifying.rows import Batch, Documents, Sizes
from convert.verifying.side import Continuation, FolderSide, Side, TokenIds

# Largest difference of two logits or hidden states, in units of the largest: laws 2 and 3 of the design, in float32.
TOLERANCE = 1e-5
# The same of two gradients of one tensor.
GRADIENT_TOLERANCE = 1e-4
# A tensor whose gradient is smaller than this share of the largest in its layer has rounding errors of the others.
_SMALL_GRADIENT = 0.01
# In nats, on average over the positions: bfloat16 rounds to 8 bits, so only nonsense is further away.
BFLOAT16_KL = 1.0


@dataclass(frozen=True)
class Behaviour:
    """Checks, and for the picture the largest error after each stage and of each stage's gradients."""

    checks: list[Check]
    hidden_errors: dict[str, float | None] = field(default_factory=dict)
    gradient_errors: dict[str, float | None] = field(default_factory=dict)
    tokens: np.ndarray | None = None


def compare(
    ours: Side,
    theirs: FolderSide,
    prompts: Sequence[TokenIds],
    new_tokens: int,
    sizes: Sizes,
    pad: int,
    *,
    differentiated: Side | None = None,
    routed: bool = False,
) -> Behaviour:
    """Asks both sides the same questions.

    Args:
        ours: the model that is right.
        theirs: the model that is to be the same.
        prompts: token ids, at least one in each.
        new_tokens: the length of the continuations.
        sizes: the models'.
        pad: the token that fills rows up.
        differentiated: stands for `ours` where gradients are compared, if its tensors are not those of `theirs`.
        routed: whether tokens are sent to experts.
    """
    chosen = theirs.continued(prompts, new_tokens, None)
    followed = ours.continued(prompts, new_tokens, chosen.tokens_BS)
    whole = rows.continued(prompts, chosen.tokens_BS, sizes, pad)
    documents = rows.documents(whole.input_ids.shape[1], sizes, pad)
    batches = [whole, documents.padded, documents.packed, rows.long_row(sizes)]
    walked = _walk(ours, theirs, batches)
    hint = ", unless two experts score the same to rounding" if routed else ""
    gradients = _compare_gradients(differentiated or ours, theirs, rows.to_learn(documents.packed, sizes))
    checks = [
        _logits(walked, batches, sizes, hint),
        _in_company(walked, documents, (ours.name, theirs.name), hint),
        _cached(walked, prompts, (followed, chosen), (ours.name, theirs.name), hint),
        _greedy(prompts, followed, chosen, (ours.name, theirs.name)),
        gradients.check,
        _bfloat16(walked.exact_BCV, theirs.bfloat16_logits(whole), whole),
    ]
    return Behaviour(checks, walked.errors, gradients.errors, chosen.tokens_BS)


@dataclass(frozen=True)
class _Walked:
    """Errors by stage, final hidden states of each side and batch, errors of logits, and the first batch's logits."""

    errors: dict[str, float | None]
    hidden: list[list[np.ndarray]]
    of_logits: list[float | None]
    exact_BCV: np.ndarray


def _walk(ours: Side, theirs: Side, batches: Sequence[Batch]) -> _Walked:
    by_stage: dict[str, float | None] = {}
    hidden: list[list[np.ndarray]] = []
    # The second has its hidden states in memory by then, so the first goes along with it.
    for b, a in zip(theirs.walk(batches), ours.walk(batches), strict=True):
        assert a.name == b.name
        errors = []
        for batch, x, y in zip(batches, a.arrays, b.arrays, strict=True):
            real = batch.segment_ids != 0 if a.name == "norm" else batch.real
            errors.append(relative_error(x[real], y[real]))
        by_stage[a.name] = worst(errors)
        if a.name == "norm":
            hidden += [a.arrays, b.arrays]
    del by_stage["logits"]
    return _Walked(by_stage, hidden, errors, a.arrays[0])  # the logits come last


def _logits(walked: _Walked, batches: Sequence[Batch], sizes: Sizes, hint: str) -> Check:
    figures: dict[str, Any] = {"tolerance": TOLERANCE, "positions": 0, "rows": {}}
    differences, errors = [], walked.of_logits
    for batch, error in zip(batches, errors, strict=True):
        length = int(batch.position_ids.max()) + 1
        figures["rows"][batch.name] = {"max_relative_error": error, "length": length}
        figures["positions"] += int(batch.real.sum())
        if not is_within(error, TOLERANCE):
            amount = "nan" if error is None else f"{in_words(error)} of the largest"
            differences.append(
                f"logits of the {_NAMES[batch.name]} differ by {amount}, more than the {TOLERANCE:g} that float32 "
                f"allows{hint}"
            )
    figures["max_relative_error"] = worst(errors)
    longest = int(batches[-1].position_ids.max()) + 1
    window = ""
    if sizes.window is not None:
        figures["beyond_two_windows"] = longest > 2 * sizes.window
        window = f", {'more' if longest > 2 * sizes.window else 'not more'} than two windows of {sizes.window}"
    shown = f"{figures['positions']} positions of rows of up to {longest} tokens{window}"
    return Check("logits", f"within {in_words(worst(errors))} of the largest at {shown}", figures, differences)


_NAMES = {"prompts": "prompts", "padded": "padded rows", "packed": "packed rows", "long": "long row"}


def _in_company(walked: _Walked, documents: Documents, names: tuple[str, str], hint: str) -> Check:
    """Documents in packed rows against the same in padded rows, on each side for itself."""
    errors, differences = {}, []
    for name, hidden in zip(_apart(names), walked.hidden, strict=True):
        error = relative_error(*documents.apart(hidden[1], hidden[2]))
        errors[name] = error
        if not is_within(error, TOLERANCE):
            differences.append(
                f"in {name}, documents in packed rows have other hidden states than by themselves in padded rows, by "
                f"{in_words(error)} of the largest, more than {TOLERANCE:g}{hint}"
            )
    shown = f"{len(documents.places)} packed documents are as by themselves, within {in_words(_worst_of(errors))}"
    return Check("padding and packing", shown, {"max_relative_error": errors, "tolerance": TOLERANCE}, differences)


def _cached(
    walked: _Walked,
    prompts: Sequence[TokenIds],
    continued: tuple[Continuation, Continuation],
    names: tuple[str, str],
    hint: str,
) -> Check:
    """Tokens that were read one by one against all tokens at once, on each side for itself."""
    count = continued[0].hidden_BSD.shape[1]
    errors, differences = {}, []
    for name, hidden, one_by_one in zip(_apart(names), walked.hidden, continued, strict=True):
        at_once = [hidden[0][row, len(prompt) : len(prompt) + count] for row, prompt in enumerate(prompts)]
        error = relative_error(one_by_one.hidden_BSD, np.stack(at_once))
        errors[name] = error
        if not is_within(error, TOLERANCE):
            differences.append(
                f"in {name}, {count} tokens that are read one by one through a cache have hidden states that differ "
                f"by {in_words(error)} of the largest from those of one pass, more than {TOLERANCE:g}{hint}"
            )
    figures = {"tokens": count, "max_relative_error": errors, "tolerance": TOLERANCE}
    shown = f"{count} tokens one by one are as in one pass, within {in_words(_worst_of(errors))}"
    return Check("cached decoding", shown, figures, differences)


def _greedy(prompts: Sequence[TokenIds], followed: Continuation, chosen: Continuation, names: tuple[str, str]) -> Check:
    """The same choices; of two tokens whose logits are as near as rounding, either may be chosen."""
    first, second = names
    tie = TOLERANCE * followed.largest
    apart_BS = (followed.tokens_BS != chosen.tokens_BS) & ~(followed.behind_BS <= tie)
    differences = []
    for row in np.flatnonzero(apart_BS.any(axis=1)):
        at = int(apart_BS[row].argmax())
        differences.append(
            f"after prompt {row + 1}, greedy token {at + 1} is {followed.tokens_BS[row, at]} in {first}, but "
            f"{chosen.tokens_BS[row, at]} in {second} (their logits are {followed.behind_BS[row, at]:.1e} apart)"
        )
    ties = int((followed.tokens_BS != chosen.tokens_BS).sum() - apart_BS.sum())
    count = chosen.tokens_BS.shape[1]
    shown = f"{len(prompts)} continuations of {count} tokens are the same" + (f", {ties} of equal logits" * (ties > 0))
    return Check(
        "greedy continuations", shown, {"continuations": len(prompts), "tokens": count, "ties": ties}, differences
    )


@dataclass(frozen=True)
class _Gradients:
    check: Check
    errors: dict[str, float | None]


def _compare_gradients(ours: Side, theirs: Side, batch: Batch) -> _Gradients:
    errors: dict[str, float | None] = {}
    differences, count = [], 0
    for name, apart in _gradients_apart(ours, theirs, batch).items():
        largest = max((difference.largest for difference in apart.values()), default=0.0)
        of_tensors = []
        for key in sorted(apart):
            error = apart[key].relative(_SMALL_GRADIENT * largest)
            of_tensors.append(error)
            count += 1
            if not is_within(error, GRADIENT_TOLERANCE):
                differences.append(
                    f"the gradients of {key} differ by {in_words(error)} of the largest, more than "
                    f"{GRADIENT_TOLERANCE:g}"
                )
        errors[name] = worst(of_tensors)
    error = worst(list(errors.values()))
    figures = {"tensors": count, "max_relative_error": error, "tolerance": GRADIENT_TOLERANCE}
    shown = f"{count} tensors within {in_words(error)} of each one's largest"
    return _Gradients(Check("gradients", shown, figures, differences), dict(reversed(errors.items())))


def _gradients_apart(ours: Side, theirs: Side, batch: Batch) -> dict[str, dict[str, Difference]]:
    """Stage -> key -> how far the gradients are apart."""
    apart: dict[str, dict[str, Difference]] = defaultdict(lambda: defaultdict(Difference))
    first, second = theirs.gradients(batch), ours.gradients(batch)
    # zip would hold a layer's gradients of both sides until it has the next layer's.
    while (b := next(first, None)) is not None:
        a = next(second)
        assert a[0] == b[0]
        for key in a[1].keys() & b[1].keys():
            apart[b[0]][key].add(a[1][key], b[1][key])
        del a, b
    assert next(second, None) is None
    return apart


def _bfloat16(exact_BCV: np.ndarray, rounded_BCV: np.ndarray, batch: Batch) -> Check:
    """How far the export is from the run when it is computed in bfloat16: KL(float32 || bfloat16) in nats."""
    exact, rounded = exact_BCV[batch.real], rounded_BCV[batch.real]
    if not (np.isfinite(exact).all() and np.isfinite(rounded).all()):
        return Check("bfloat16", "logits are nan or infinite", {}, ["in bfloat16 logits are nan or infinite"])
    p, q = _log_softmax(exact), _log_softmax(rounded)
    kl = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)
    agreement = float((exact.argmax(axis=-1) == rounded.argmax(axis=-1)).mean())
    figures = {"largest_kl": float(kl.max()), "mean_kl": float(kl.mean()), "top_1_agreement": agreement}
    shown = f"KL at most {kl.max():.1e} nats, {agreement:.1%} of likeliest tokens the same"
    nonsense = (
        [f"in bfloat16 the logits are {kl.mean():.1f} nats from float32 on average, more than {BFLOAT16_KL:g}"]
        if kl.mean() > BFLOAT16_KL
        else []
    )
    return Check("bfloat16", shown, figures, nonsense)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = (logits - logits.max(axis=-1, keepdims=True)).astype(np.float64)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _worst_of(errors: dict[str, float | None]) -> float | None:
    return worst(list(errors.values()))


def _apart(names: tuple[str, str]) -> tuple[str, str]:
    """The names of both sides, told apart if they are the same."""
    first, second = names
    return (f"{first} (first)", f"{second} (second)") if first == second else names
