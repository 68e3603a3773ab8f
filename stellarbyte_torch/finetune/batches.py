"""Divides an epoch's samples among the processes: every sample once, in an order that a resumed run repeats."""

from collections.abc import Iterator, Sequence, Sized
from typing import Literal

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

Strategy = Literal["random", "group_by_length", "sequential"]


class EpochSampler(Sampler[int]):
    """The order of an epoch's samples. Seed and epoch alone decide it, so a run can be resumed within an epoch.

    Args:
        batch_size: the number of samples of similar length that "group_by_length" puts together: those of one step
            on all processes.
        lengths: the number of tokens in each sample.
        seed: the seed of the order; each epoch adds its number.
        strategy: Transformers' train_sampling_strategy.
    """

    def __init__(
        self, batch_size: int, lengths: Sequence[int], seed: int, strategy: Strategy = "group_by_length"
    ) -> None:
        self._batch_size, self._lengths, self._strategy = batch_size, list(lengths), strategy
        self._seed, self._epoch = seed, 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that begins; the data loader calls this."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        if self._strategy == "sequential":
            return iter(range(len(self)))
        if self._strategy == "random":
            return iter(torch.randperm(len(self), generator=generator).tolist())
        return iter(get_length_grouped_indices(self._lengths, self._batch_size, generator=generator))


class EpochBatches(Sampler[list[int]]):
    """One process's part of each batch of an epoch. All processes get equally many parts, and each sample is in one.

    A smaller last batch is shared out evenly. A process may then get an empty part, which the collators turn into a row
    of padding, because every process must take part in each forward and backward pass. (Accelerate would repeat samples
    from the epoch's start instead.)

    Args:
        sampler: the order of the samples.
        batch_size: the number of samples in each process's part of a full batch.
        drop_last: whether to leave out a smaller last batch.
    """

    def __init__(
        self, sampler: EpochSampler, batch_size: int, process_index: int, processes: int, *, drop_last: bool
    ) -> None:
        self._sampler, self._batch_size, self._drop_last = sampler, batch_size, drop_last
        self._process_index, self._processes = process_index, processes

    def __len__(self) -> int:
        samples, together = len(self._sampler), self._batch_size * self._processes
        return samples // together if self._drop_last else -(-samples // together)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that begins. The data loader calls this; Trainer does when a resumed epoch skips batches."""
        self._sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        order, together = list(self._sampler), self._batch_size * self._processes
        for start in range(0, len(self) * together, together):
            batch = order[start : start + together]
            first, last = (
                len(batch) * process // self._processes for process in (self._process_index, self._process_index + 1)
            )
            yield batch[first:last]


def sample_lengths(dataset: Sized) -> list[int]:
    """The number of tokens in each item of a dataset."""
    return [len(dataset[index]["input_ids"]) for index in range(len(dataset))]  # type: ignore[index]
