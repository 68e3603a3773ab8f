"""The gate: measures on held-out text what quantising a model has cost, and says PASS or FAIL."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from stellarbyte.errors import UserError
from stellarbyte.figures import perplexity
from stellarbyte.progress import Update
from stellarbyte_torch.quantization.positions import positions_of

# Positions whose logits are in memory at once: those of a large vocabulary take more than all else.
_POSITIONS = 128
# For the speed: tokens of the prompt, and new tokens.
_PROMPT, _NEW = 16, 32


@dataclass(frozen=True)
class Running:
    """How a model runs on this machine: tokens a second when it continues one prompt, and the bytes of its weights.

    memory: in memory while it runs, as Transformers holds them.
    """

    tokens_per_second: float
    memory: int


@dataclass(frozen=True)
class Reference:
    """The model before: its hidden states on the held-out rows, of which its head makes the logits again.

    A copy of all its logits would take far more memory. hidden: for each row, what the head reads, [T, D].
    """

    rows_NT: Tensor
    hidden: list[Tensor]
    head: nn.Module

    def beginning(self, rows: int, length: int) -> "Reference":
        """The same of the first tokens of the first rows."""
        return replace(self, rows_NT=self.rows_NT[:rows, :length], hidden=[x[:length] for x in self.hidden[:rows]])


@dataclass(frozen=True)
class Comparison:
    """The model after, beside the one before, over all positions of the held-out rows that have a next token.

    kl: the mean Kullback-Leibler divergence from the model before, in nats. context: the mean divergence of the
    predictions before from their own mean, which is what they owe to the context. top_1: the share of positions at
    which both think the same token most likely. before, after: the mean loss of the next token, in nats.
    """

    before: float
    after: float
    kl: float
    context: float
    top_1: float
    positions: int

    @property
    def perplexities(self) -> tuple[float, float]:
        """The perplexity before and after."""
        return perplexity(self.before), perplexity(self.after)

    @property
    def increase(self) -> float:
        """How much the perplexity grew, as a share of what it was."""
        return perplexity(self.after - self.before) - 1

    @property
    def lost(self) -> float:
        """The divergence as a share of what the predictions owe to the context.

        A model that has learnt nothing has no perplexity to lose, and its predictions are all nearly the same, so that
        a divergence is small too; but what little they differ by is lost as well if the weights are.
        """
        return self.kl / self.context if self.context > 0 else float(self.kl > 0)


@torch.no_grad()
def reference(model: Any, rows_NT: Tensor, progress: Update = lambda _done, _whole: None) -> Reference:
    """What the model in float says of the rows. The model itself is not kept."""
    hidden = []
    with _heard(model) as heard:
        for number, row in enumerate(rows_NT):
            _read(model, row)
            hidden.append(heard.pop()[0])
            progress(number + 1, len(rows_NT))
    return Reference(rows_NT, hidden, model.get_output_embeddings())


@torch.no_grad()
def compare(model: Any, before: Reference, progress: Update = lambda _done, _whole: None) -> Comparison:
    """What the quantised model says of the rows, beside the model before.

    Raises:
        UserError: its logits are no finite numbers.
    """
    head, sums, positions = model.get_output_embeddings(), torch.zeros(5, dtype=torch.float64), 0
    total_V = torch.zeros(head.weight.shape[0], dtype=torch.float64, device=model.device)
    with _heard(model) as heard:
        for number, (row, hidden_TD) in enumerate(zip(before.rows_NT, before.hidden, strict=True)):
            _read(model, row)
            ours_TD, labels = heard.pop()[0], row[1:].to(model.device)
            for start in range(0, len(labels), _POSITIONS):
                part = slice(start, min(start + _POSITIONS, len(labels)))
                p_TV, q_TV = (
                    h(x[None, part])[0].float().log_softmax(-1) for h, x in ((before.head, hidden_TD), (head, ours_TD))
                )
                sums += _figures(p_TV, q_TV, labels[part]).cpu()
                total_V += p_TV.exp().sum(0, dtype=torch.float64)
            positions += len(labels)
            progress(number + 1, len(before.rows_NT))
    if not bool(sums.isfinite().all()):
        raise UserError("the quantised model's logits on the held-out text are not finite: take more bits")
    loss_before, loss_after, kl, top_1, entropy = (sums / positions).tolist()
    entropy_of_mean = torch.special.entr(total_V / positions).sum().item()
    return Comparison(loss_before, loss_after, kl, entropy_of_mean - entropy, top_1, positions)


def _figures(p_TV: Tensor, q_TV: Tensor, labels_T: Tensor) -> Tensor:
    """Sums over positions of both losses, the divergence, the agreements and the entropy; given log-probabilities."""
    losses = (-x.gather(1, labels_T[:, None]).sum(dtype=torch.float64) for x in (p_TV, q_TV))
    shares_TV = p_TV.exp()
    kl, entropy = (shares_TV * (p_TV - q_TV)).sum(dtype=torch.float64), -(shares_TV * p_TV).sum(dtype=torch.float64)
    agreements = (p_TV.argmax(-1) == q_TV.argmax(-1)).sum(dtype=torch.float64)
    return torch.stack([*losses, kl, agreements, entropy])


def _read(model: Any, row_T: Tensor) -> None:
    """Lets a model read a row, whose documents do not see each other."""
    ids = row_T[None].to(model.device)
    model(ids, position_ids=positions_of(ids, model.config.bos_token_id), use_cache=False, logits_to_keep=1)


@contextmanager
def _heard(model: Any) -> Iterator[list[Tensor]]:
    """Yields a list that gets all hidden states [B, T, D] that the head could read, at each call of the model."""
    heard: list[Tensor] = []
    # The head itself gets only the positions whose logits are asked for.
    hook = model.base_model.register_forward_hook(lambda _module, _args, output: heard.append(output[0]))
    try:
        yield heard
    finally:
        hook.remove()


@torch.no_grad()
def run(model: Any, row_T: Tensor) -> Running:
    """Continues the beginning of a row greedily; the first time warms up, and the faster of the next two counts."""
    prompt = row_T[None, :_PROMPT].to(model.device)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        tokens = model.generate(prompt, max_new_tokens=_NEW, min_new_tokens=_NEW, do_sample=False, pad_token_id=0)
        seconds.append((time.perf_counter() - started) / (tokens.shape[1] - prompt.shape[1]))
    return Running(1 / min(seconds[1:]), held_bytes(model))


def held_bytes(model: nn.Module) -> int:
    """The bytes of a model's parameters and buffers; what two of them share counts once."""
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in model.state_dict().values()}
    return sum(storages.values())
