import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stellarbyte.chat.encoding import Sample
from stellarbyte.chat.packing import pack, samples_of_rows
from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_torch.data.collation import (
    PackedDataset,
    PackingCollator,
    PaddingCollator,
    SampleDataset,
)

from ..tiny import TINY, relative_error, tiny_model

PAD = 2


def samples(count: int, longest: int = 20, seed: int = 0) -> list[Sample]:
    draw = np.random.default_rng(seed)
    found = []
    for index in range(count):
        length = int(draw.integers(2, longest + 1))
        trained = draw.random(length) < 0.6
        trained[0] = False
        found.append(Sample(f"x:{index}", draw.integers(3, 97, length).astype(np.int32), trained))
    return found


def test_padding() -> None:
    items = [SampleDataset(samples(4))[index] for index in range(4)]
    batch = PaddingCollator(PAD)(items)
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    longest = max(len(item["input_ids"]) for item in items)
    assert {tensor.shape for tensor in batch.values()} == {(4, -(-longest // 8) * 8)}
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    for row, (item, sample) in enumerate(zip(items, samples(4), strict=True)):
        length = len(sample)
        assert batch["input_ids"][row].tolist() == sample.input_ids.tolist() + [PAD] * (
            batch["labels"].shape[1] - length
        )
        assert batch["attention_mask"][row].sum() == length
        assert batch["attention_mask"][row, :length].all()
        assert batch["labels"][row, :length].tolist() == item["labels"].tolist()
        assert (batch["labels"][row, length:] == IGNORED_LABEL).all()
        assert ((item["labels"] != IGNORED_LABEL) == sample.trained).all()
        assert (item["labels"][sample.trained] == sample.input_ids[sample.trained]).all()


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {name: value for name, value in TINY.items() if name != "xpos_scale_base"}
    return LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation="sdpa")).eval()


@pytest.mark.parametrize("make", [tiny_model, lambda: tiny_model("eager", sliding_window=6), llama])
def test_packed_samples_are_as_if_alone(make) -> None:
    """Loss and gradients of packed rows are those of the samples one by one; our model and transformers' Llama."""
    model = make()
    found = samples(7)
    packed = PackedDataset(found, samples_of_rows(pack([len(sample) for sample in found], 48)))
    batch = PackingCollator(PAD, 48)([packed[index] for index in range(len(packed))])
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert len(packed) < len(found)
    trained = (batch["labels"] != IGNORED_LABEL).sum()
    assert trained == sum(sample.trained.sum() for sample in found)

    loss = model(**batch, num_items_in_batch=trained, use_cache=False).loss
    gradient = torch.autograd.grad(loss, model.get_input_embeddings().weight)[0]

    alone = torch.zeros(())
    for index in range(len(found)):
        item = SampleDataset(found)[index]
        one = {name: torch.from_numpy(value)[None] for name, value in item.items()}
        alone = alone + model(**one, num_items_in_batch=trained).loss
    expected = torch.autograd.grad(alone, model.get_input_embeddings().weight)[0]
    assert relative_error(loss, alone) < 1e-5
    assert relative_error(gradient, expected) < 1e-4


def test_padded_samples_are_as_if_alone() -> None:
    model, found = tiny_model(), samples(5)
    dataset = SampleDataset(found)
    batch = PaddingCollator(PAD)([dataset[index] for index in range(5)])
    trained = (batch["labels"] != IGNORED_LABEL).sum()
    alone = sum(
        model(
            **{name: torch.from_numpy(value)[None] for name, value in dataset[index].items()},
            num_items_in_batch=trained,
        ).loss
        for index in range(5)
    )
    assert relative_error(model(**batch, num_items_in_batch=trained).loss, alone) < 1e-5
