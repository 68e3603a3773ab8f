"""Bytes by hand: weights by dtype, what training holds, keys and values, and what fits on chips."""

import pytest

from stellarbyte.chips import CHIPS
from stellarbyte.kv_cache.settings import KVBudget
from stellarbyte.report.find import find_subject
from stellarbyte.report.memory import Foreseen, cache_bytes, count_memory, weight_bytes
from stellarbyte.report.parameters import count_parameters
from stellarbyte.report.structure import structure_of
from test_stellarbyte.test_report.folders import LLAMA, folder, llama

NUMBERS = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32) + 2 * 96 * 32 + 32
MATRICES = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
TOKEN = 2 * 2 * 2 * 8  # two layers, keys and values, two heads of 8 channels


def memory(path, **options):
    subject = find_subject(path)
    structure = structure_of(subject)
    return count_memory(subject, structure, count_parameters(subject), options.pop("foreseen", Foreseen()), **options)


@pytest.fixture
def plain(tmp_path):
    return folder(tmp_path / "plain", LLAMA, llama())


def test_weights_as_stored_and_by_dtype(plain):
    found = memory(plain)
    assert found.stored == 2 * NUMBERS
    assert found.stored_dtypes == {"bfloat16": 2 * NUMBERS}
    assert found.weights["float32"] == 4 * NUMBERS
    assert found.weights["bfloat16"] == 2 * NUMBERS
    rows = 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32)
    assert found.weights["int8"] == 2 * (NUMBERS - MATRICES) + MATRICES + 2 * rows
    assert found.weights["int4"] == 2 * (NUMBERS - MATRICES) + MATRICES // 2 + 2 * rows  # a group is longer than a row


def test_int4_has_a_scale_for_128_inputs(tmp_path):
    sizes = LLAMA | {"hidden_size": 512, "intermediate_size": 320}
    subject = find_subject(folder(tmp_path / "m", sizes, llama(sizes)))
    found = weight_bytes(structure_of(subject), count_parameters(subject).total)
    matrices = 2 * (2 * 512 * 512 + 2 * 256 * 512 + 3 * 320 * 512)
    groups = 2 * (4 * (512 + 2 * 256 + 512 + 2 * 320) + 3 * 512)
    rest = count_parameters(subject).total - matrices
    assert found["int4"] == 2 * rest + matrices // 2 + 2 * groups


def test_what_training_holds(plain):
    found = memory(plain)
    assert found.optimizer == "adamw"
    assert found.state == {"weights": 4 * NUMBERS, "gradients": 4 * NUMBERS, "optimizer": 8 * NUMBERS}
    assert found.training == ()


def test_keys_and_values(plain, tmp_path):
    caches = {cache.dtype: cache for cache in memory(plain).cache}
    assert caches["float32"].token == 4 * TOKEN
    assert caches["bfloat16"].lengths == ((64, 64 * 2 * TOKEN),)
    assert caches["int8"].token == TOKEN + 2 * 2 * 2 * 4  # a float32 scale for each key and value
    window = folder(tmp_path / "w", LLAMA | {"model_type": "mistral", "sliding_window": 16}, llama())
    assert memory(window).cache[1].lengths == ((64, 16 * 2 * TOKEN),)


@pytest.mark.parametrize(("budget", "slots"), [("32", 32), ("50%", 32), ("1000", 64)])
def test_a_cache_within_a_budget(budget, slots, plain):
    found = memory(plain, budget=KVBudget.parse(budget)).cache[1]
    assert found.lengths[-1] == (64, slots * 2 * TOKEN)
    assert found.token == 2 * TOKEN
    assert found.budget == (1000 if budget == "1000" else 32)


def test_a_cache_in_layers_with_and_without_a_window(tmp_path):
    fields = LLAMA | {"model_type": "gemma2", "sliding_window": 16}
    structure = structure_of(find_subject(folder(tmp_path / "m", fields, llama())))
    assert cache_bytes(structure, "bfloat16", 64) == (16 + 64) * TOKEN


def test_rows_that_fit(plain):
    """By hand: what is left beside the weights, over what a row takes."""
    found = memory(plain)
    assert [fit.bytes for fit in found.chips] == sorted(int(chip.hbm_bytes) for chip in CHIPS.values())
    row = 64 * 2 * TOKEN + 4 * 96 + 64 * 2 * (5 * 32 + 3 * 48)
    for fit in found.chips:
        assert fit.inference_rows["bfloat16"] == (fit.bytes - 2 * NUMBERS) // row
        assert fit.training_rows == {}


def test_a_model_that_no_chip_holds(tmp_path):
    sizes = LLAMA | {"hidden_size": 65536, "intermediate_size": 262144}
    for fit in memory(folder(tmp_path / "m", sizes, llama(sizes))).chips:
        assert fit.inference_rows["float32"] == 0
