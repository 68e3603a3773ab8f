"""Distillation: a fine-tuned model also learns the probabilities of another of the same vocabulary."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedTokenizerBase

from stellarbyte.errors import UserError
from stellarbyte.files import check_path
from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_torch.finetune.base_model import load_base, load_base_config, load_base_tokenizer
from stellarbyte_torch.finetune.packing_check import check_packing


@dataclass(frozen=True)
class DistillConfig:
    """What a model learns from another: (1 - weight) · cross-entropy + weight · temperature² · KL(teacher ‖ student).

    Both give probabilities at that temperature (Hinton et al. 2015, arXiv:1503.02531).
    """

    teacher: str
    """The model that teaches and stays as it is: a folder or a Hub id of the same tokenizer and vocabulary, such as the
    one from which `model` was pruned.
    """

    weight: float = 0.5
    """Share of the teacher in what training makes small, more than 0 and at most 1; the rest is the share of the data's
    own tokens.
    """

    temperature: float = 1.0
    """What logits of both models are divided by before they become probabilities, from 0.01 to 100; above 1 the
    teacher's small probabilities count for more.
    """

    def __post_init__(self) -> None:
        check_path(self.teacher, "distill.teacher")
        if not 0 < self.weight <= 1:
            raise UserError(f"distill.weight {self.weight} must be in (0, 1], such as 0.5")
        if not 0.01 <= self.temperature <= 100:  # beyond, float32 has nothing left of the two models' difference
            raise UserError(f"distill.temperature {self.temperature} must be at least 0.01 and at most 100")


class Teacher:
    """A model that teaches, and how much. Its weights stay as they are, whole on each device."""

    def __init__(self, model: Any, config: DistillConfig) -> None:
        self.model, self.config = model.eval().requires_grad_(False), config

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the names, types, shapes and bytes of its weights, wherever they were read from."""
        digest = hashlib.sha256()
        for name, weight in sorted(chain(self.model.named_parameters(), self.model.named_buffers())):
            for tensor in _plain_tensors(weight.detach()):
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def added(
        self, logits_BTV: Tensor, inputs: dict[str, Any], labels_BT: Tensor, items: Any, processes: int
    ) -> Tensor:
        """What the teacher adds to a loss that is the cross-entropy of these logits.

        items: the number of trained tokens of the step, of which this batch is a part; None if the loss is the batch's
        own mean. processes: the factor by which Trainer scales a loss that is a part of all processes' tokens.
        """
        weight, temperature = self.config.weight, self.config.temperature
        with torch.no_grad():
            theirs_BTV = self.model(**inputs, use_cache=False).logits
        labels_M = labels_BT[:, 1:].flatten()
        kept_M = labels_M != IGNORED_LABEL
        ours_MV, theirs_MV = (each[:, :-1].flatten(0, 1)[kept_M].float() for each in (logits_BTV, theirs_BTV))
        log_ours_MV, log_theirs_MV = (log_softmax(each / temperature, dim=-1) for each in (ours_MV, theirs_MV))
        apart = kl_div(log_ours_MV, log_theirs_MV, reduction="sum", log_target=True)
        change = weight * (temperature**2 * apart - cross_entropy(ours_MV, labels_M[kept_M], reduction="sum"))
        return change / kept_M.sum().clamp(min=1) if items is None else change * processes / items


def check_teacher(
    config: DistillConfig | None, model_config: Any, tokenizer: PreTrainedTokenizerBase, sequence_length: int
) -> None:
    """Raises UserError if there is no such teacher, it has another vocabulary or tokenizer, or too short a context."""
    if config is None:
        return
    name = f"distill.teacher {config.teacher}"
    try:
        theirs, tokens = load_base_config(config.teacher), load_base_tokenizer(config.teacher)
    except UserError as error:
        raise UserError(f"distill.teacher: {error}") from error
    if theirs.vocab_size != model_config.vocab_size:
        raise UserError(
            f"{name} has a vocabulary of {theirs.vocab_size}, and the model one of {model_config.vocab_size}: a "
            "teacher and its student share one"
        )
    if tokens.get_vocab() != tokenizer.get_vocab():
        raise UserError(f"{name} has another tokenizer than the model: a teacher and its student share one")
    context = getattr(theirs, "max_position_embeddings", None)
    if context is not None and context < sequence_length:
        raise UserError(
            f"{name} has {context} positions, and data.sequence_length {sequence_length} is more: set it to {context}"
        )


def load_teacher(config: DistillConfig | None, dtype: str, device: torch.device, packed_rows: int) -> Teacher | None:
    """The teacher on a device; None if there is none. packed_rows: the rows of a batch of packed samples, or 0.

    Raises:
        UserError: it cannot be loaded, or lets packed samples see each other.
    """
    if config is None:
        return None
    model: Any = load_base(config.teacher, dtype, "none").to(device)
    teacher = Teacher(model, config)
    if packed_rows and not check_packing(model, model.config.vocab_size, rows=min(2, packed_rows)).is_exact:
        raise UserError(
            f"data.packing is not for distill.teacher {config.teacher}, whose packed samples see others: set it to "
            "false"
        )
    return teacher


def _plain_tensors(tensor: Any) -> Iterator[Tensor]:
    """The tensor, or what a quantised one is made of."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain_tensors(getattr(tensor, name))
