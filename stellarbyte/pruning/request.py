"""What `stellarbyte prune` was asked for, of a run or of a folder alike."""

from dataclasses import dataclass, replace
from pathlib import Path

from stellarbyte.pruning.choice import Wanted
from stellarbyte.pruning.recover import Recovery
from stellarbyte.pruning.scores import Importance


@dataclass(frozen=True)
class Request:
    """A request to prune a model.

    Attributes:
        keeps: the shares that are tried, one after the other; the last one is written.
        wanted: the rest of what is wanted; its own `keep` is the last of `keeps`.
        importance: how pieces are scored.
        samples: the number of rows of training text that scores are measured on.
        eval_batches: the number of batches that the loss is measured on; None for all of the held-out text.
        recovery: how the pruned model is trained afterwards; None if it is not.
        pareto: the file of a picture of all shares.
    """

    keeps: tuple[float, ...]
    wanted: Wanted
    importance: Importance = "taylor"
    samples: int = 64
    eval_batches: int | None = None
    recovery: Recovery | None = None
    pareto: Path | None = None

    def each(self) -> list[Wanted]:
        """What is wanted for each share."""
        return [replace(self.wanted, keep=keep) for keep in self.keeps]
