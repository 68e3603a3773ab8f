"""Tests on a model itself, with two short samples, whether it keeps packed samples apart."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

# Tokens of each of the two samples: more than the width of hybrid models' short convolutions, which may leak as well.
_LENGTH = 12

# The largest `seen` and `moved` that rounding alone may cause. Masked attention multiplies the sample in front by 0, so
# `seen` is exactly 0 except in mixtures of experts, where other tokens change each expert's batch; architectures that
# leak show 1e-3 and more. `moved` is larger because the sums run in another order.
_ROUNDING = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-5, 1e-3)}
_ROUNDING_OF_HALVES = (2e-3, 0.1)


class PackingVerdict(NamedTuple):
    """How far packing changes a sample's logits, as a share of their norm.

    seen: the change when another sample stands in front of it. moved: the difference from the logits of the same sample
    at the front of a row, where it is as if alone. sees_others, is_moved: whether `seen` or `moved` is more than
    rounding. complaint: the error that the model raised instead of giving logits, or "".
    """

    seen: float
    moved: float
    sees_others: bool
    is_moved: bool
    complaint: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether packed samples give the same results as samples alone."""
        return not (self.complaint or self.sees_others or self.is_moved)


def check_packing(model: nn.Module, vocab_size: int, *, rows: int = 2) -> PackingVerdict:
    """Runs the model on short samples packed as our collator packs them: no attention_mask, positions from 0 in each.

    The model keeps its dtype and device; dropout is off during the test. rows: the size of the batch, which matters
    because some kernels look for packed samples only in batches of one row.
    """
    draw = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    first, other, sample = (
        torch.randint(min(3, vocab_size - 1), vocab_size, (rows, _LENGTH), generator=draw).to(device) for _ in range(3)
    )
    with _at_rest(model):
        try:
            behind = _logits(model, first, sample)[:, _LENGTH:]
            behind_other = _logits(model, other, sample)[:, _LENGTH:]
            in_front = _logits(model, sample, first)[:, :_LENGTH]
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError) as error:  # models raise any
            complaint = " ".join(str(error).split()) or type(error).__name__
            return PackingVerdict(math.inf, math.inf, True, True, complaint)
    seen, moved = _difference(behind, behind_other), _difference(behind, in_front)
    of_seen, of_moved = _ROUNDING.get(behind.dtype, _ROUNDING_OF_HALVES)
    return PackingVerdict(seen, moved, seen > of_seen, moved > of_moved)


def _logits(model: nn.Module, *samples: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(_LENGTH, device=samples[0].device).repeat(len(samples[0]), len(samples))
    return model(input_ids=torch.cat(samples, 1), position_ids=positions, use_cache=False).logits


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The relative difference of logits, less each one's mean, which a softmax ignores; infinite if any is NaN."""
    a, b = (logits.double() - logits.double().mean(-1, keepdim=True) for logits in (a, b))
    difference = ((a - b).norm() / b.norm()).item()
    return math.inf if math.isnan(difference) else difference


@contextmanager
def _at_rest(model: Any) -> Iterator[None]:
    was_training = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):  # ZeRO-3 splits each among processes
            from deepspeed.zero import GatheredParameters

            stack.enter_context(GatheredParameters(list(model.parameters())))
        stack.enter_context(torch.no_grad())
        try:
            model.eval()
            yield
        finally:
            for module, training in was_training.items():
                module.training = training
