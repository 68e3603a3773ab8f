"""Turns samples into the items of a dataset, and items into the batches that a model takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from stellarbyte.chat.encoding import Sample
from stellarbyte.labels import IGNORED_LABEL

# Padded lengths are multiples of this: tensor cores are faster with them, and a compiled model sees fewer shapes.
_LENGTH_MULTIPLE = 8

Item = dict[str, np.ndarray]


class SampleDataset(Dataset[Item]):
    """A dataset with one sample an item: input_ids and labels, int64 [T]; labels are -100 at tokens not trained on."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        sample = self.samples[index]
        input_ids = sample.input_ids.astype(np.int64)
        return {"input_ids": input_ids, "labels": np.where(sample.trained, input_ids, IGNORED_LABEL)}


class PackedDataset(Dataset[Item]):
    """A dataset with one row of packed samples an item: input_ids, labels and position_ids, int64 [T].

    Positions start at 0 in each sample. No sample sees another, because our models and Transformers' start a new
    document wherever positions do not rise by one. No sample predicts the next one's first token, because that is
    never trained on.
    """

    def __init__(self, samples: Sequence[Sample], rows: Sequence[Sequence[int]]) -> None:
        self.samples, self.rows = SampleDataset(samples), rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        items = [self.samples[sample] for sample in self.rows[index]]
        row = {name: np.concatenate([item[name] for item in items]) for name in ("input_ids", "labels")}
        return row | {"position_ids": np.concatenate([np.arange(len(item["labels"])) for item in items])}


@dataclass(frozen=True)
class PaddingCollator:
    """Pads items on the right to the longest: input_ids, labels and attention_mask, int64 [B, T].

    Without items the batch is one row of padding, which is not trained on.
    """

    pad_token_id: int

    def __call__(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        """The batch of some items."""
        if not items:  # attention_mask shows its one token, because the softmax of a fully masked row is undefined
            one = np.full(1, self.pad_token_id)
            items = [{"input_ids": one, "labels": np.full(1, IGNORED_LABEL)}]
        longest = max(len(item["input_ids"]) for item in items)
        length = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        batch = _padded(items, length, self.pad_token_id)
        lengths = torch.tensor([len(item["input_ids"]) for item in items])
        batch["attention_mask"] = (torch.arange(length)[None] < lengths[:, None]).long()
        return batch


@dataclass(frozen=True)
class PackingCollator:
    """Pads packed rows to one length: input_ids, labels and position_ids, int64 [B, T].

    There is no attention_mask, because Transformers looks for packed documents only without one; most of its models
    also do not look when they make a cache (use_cache, which Trainer turns off). The padding of a row is a document of
    its own, which is not trained on; without items the batch is one row of padding.
    """

    pad_token_id: int
    row_length: int

    def __call__(self, items: Sequence[Item]) -> dict[str, torch.Tensor]:
        """The batch of some items."""
        nothing = np.empty(0, np.int64)
        items = items or [{"input_ids": nothing, "labels": nothing, "position_ids": nothing}]
        batch = _padded(items, self.row_length, self.pad_token_id)
        positions = torch.zeros(len(items), self.row_length, dtype=torch.int64)
        for row, item in zip(positions, items, strict=True):
            used = len(item["position_ids"])
            row[:used] = torch.from_numpy(item["position_ids"])
            row[used:] = torch.arange(self.row_length - used)
        return batch | {"position_ids": positions}


def _padded(items: Sequence[Item], length: int, pad_token_id: int) -> dict[str, torch.Tensor]:
    batch: dict[str, torch.Tensor] = {}
    for name, filler in (("input_ids", pad_token_id), ("labels", IGNORED_LABEL)):
        batch[name] = torch.full((len(items), length), filler, dtype=torch.int64)
        for row, item in zip(batch[name], items, strict=True):
            row[: len(item[name])] = torch.from_numpy(item[name])
    return batch
