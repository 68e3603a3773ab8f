import itertools

import pytest
import torch

from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_torch.data.collation import PackingCollator, PaddingCollator
from stellarbyte_torch.finetune.batches import EpochBatches, EpochSampler
from stellarbyte_torch.finetune.trainer import real_tokens

STRATEGIES = ("random", "group_by_length", "sequential")


def batches(samples: int, batch_size: int, process: int, processes: int, **changes: object) -> EpochBatches:
    lengths = [5 * (index % 7) + 1 for index in range(samples)]
    sampler = EpochSampler(batch_size * processes, lengths, seed=1, strategy=changes.pop("strategy", "random"))
    return EpochBatches(sampler, batch_size, process, processes, drop_last=bool(changes.pop("drop_last", False)))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 2, 5, 12, 13, 23])
def test_each_sample_once_an_epoch_and_as_in_one_process(samples: int, processes: int, strategy: str) -> None:
    alone = batches(samples, 2 * processes, 0, 1, strategy=strategy)
    shared = [batches(samples, 2, process, processes, strategy=strategy) for process in range(processes)]
    for epoch in range(3):
        for one in (alone, *shared):
            one.set_epoch(epoch)
        parts = [list(one) for one in shared]
        assert {len(part) for part in parts} == {len(shared[0])} == {len(alone)}
        together = [[index for part in step for index in part] for step in zip(*parts, strict=True)]
        assert together == list(alone)
        assert sorted(itertools.chain(*together)) == list(range(samples))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_epoch_has_its_own_order_whatever_came_before(strategy: str) -> None:
    one, other = (batches(20, 3, 0, 1, strategy=strategy) for _ in range(2))
    first = list(one)
    torch.manual_seed(99)
    one.set_epoch(1)
    second = list(one)
    assert (first == second) == (strategy == "sequential")
    other.set_epoch(1)
    assert list(other) == second


def test_drop_last() -> None:
    left = [list(batches(11, 2, process, 2, drop_last=True)) for process in range(2)]
    assert [len(batch) for part in left for batch in part] == [2] * 4
    assert list(batches(3, 4, 0, 1, drop_last=True)) == []


@pytest.mark.parametrize("collator", [PaddingCollator(2), PackingCollator(2, 16)])
def test_a_process_without_samples_takes_part_with_padding(collator) -> None:
    batch = collator([])
    assert (batch["labels"] == IGNORED_LABEL).all() and (batch["input_ids"] == 2).all()
    assert batch["input_ids"].shape[0] == 1
    assert real_tokens(batch, 2) == 0
