"""FLOPs by hand: causal and windowed attention, groups of heads, experts, adapters, the head."""

import json

import pytest

from stellarbyte.report.find import find_subject
from stellarbyte.report.flops import count_flops, decode_work, forward_work, prefill_work
from stellarbyte.report.structure import structure_of
from test_stellarbyte.test_report.folders import LLAMA, folder, llama

PROJECTIONS = 2 * (2 * 32 * 32 + 2 * 16 * 32)
NETWORK = 2 * 3 * 48 * 32
HEAD = 2 * 96 * 32
PAIR = 4 * 4 * 8  # four heads of 8 channels, query times key and weight times value


def flops_of(path, **options):
    subject = find_subject(path)
    return count_flops(structure_of(subject), subject.fields, **options)


@pytest.fixture
def plain(tmp_path):
    return folder(tmp_path / "plain", LLAMA, llama())


def test_a_token_behind_a_cache(plain):
    for work in flops_of(plain).decode:
        assert work.parts["attention_scores"] == 2 * PAIR * (work.length + 1)
        assert work.total == 2 * (PROJECTIONS + NETWORK + PAIR * (work.length + 1)) + HEAD
        assert work.layers == (PROJECTIONS + NETWORK + PAIR * (work.length + 1),) * 2


def test_a_prompt_has_half_the_pairs_and_one_row_of_logits(plain):
    (work,) = flops_of(plain).prefill
    assert work.length == 64
    assert work.parts["attention_scores"] == 2 * PAIR * 65 / 2
    assert work.parts["head"] == HEAD / 64


def test_training_is_three_forward_passes_with_all_logits(plain):
    work = flops_of(plain, length=40).training
    assert work.total == 3 * (2 * (PROJECTIONS + NETWORK + PAIR * 41 / 2) + HEAD)
    assert sum(work.layers) + work.parts["head"] == work.total == sum(work.parts.values())


def test_a_window_by_its_mask(tmp_path):
    fields = LLAMA | {"model_type": "mistral", "sliding_window": 7}
    flops = flops_of(folder(tmp_path / "m", fields, llama()))
    seen = sum(min(token + 1, 7) for token in range(64)) / 64
    assert flops.prefill[-1].parts["attention_scores"] == pytest.approx(2 * PAIR * seen, rel=1e-12)
    assert flops.decode[-1].parts["attention_scores"] == 2 * PAIR * 7


def test_layers_with_and_without_a_window(tmp_path):
    """Gemma 2's: every second layer sees all."""
    fields = LLAMA | {"model_type": "gemma2", "sliding_window": 7, "hidden_activation": "gelu_pytorch_tanh"}
    path = folder(tmp_path / "m", fields, llama())
    assert [group.attention.window for group in structure_of(find_subject(path)).groups] == [7, None]
    assert flops_of(path).decode[-1].layers[1] - flops_of(path).decode[-1].layers[0] == PAIR * (64 - 7)


def test_experts_that_rest_cost_nothing(tmp_path):
    tensors = {name: value for name, value in llama().items() if "mlp" not in name}
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp."
        tensors[f"{prefix}gate.weight"] = ("F32", (8, 32))
        tensors[f"{prefix}experts.gate_up_proj"] = ("F32", (8, 32, 32))
        tensors[f"{prefix}experts.down_proj"] = ("F32", (8, 32, 16))
        tensors[f"{prefix}shared_experts.up_proj.weight"] = ("F32", (16, 32))
    fields = LLAMA | {"model_type": "some_moe", "num_experts_per_tok": 2}
    parts = flops_of(folder(tmp_path / "m", fields, tensors)).decode[-1].parts
    assert parts["experts"] == 2 * 2 * 2 * 3 * 16 * 32
    assert parts["router"] == 2 * 2 * 8 * 32
    assert parts["shared_experts"] == 2 * 2 * 16 * 32


def test_weights_below_adapters_get_no_gradient(plain):
    whole, frozen = flops_of(plain, length=40).training, flops_of(plain, length=40, adapters=True).training
    assert frozen.parts["feed_forward"] == whole.parts["feed_forward"] * 2 / 3
    assert frozen.parts["attention_scores"] == whole.parts["attention_scores"]


def test_what_turns_is_told_beside(plain, tmp_path):
    assert flops_of(plain).rotation == 2 * 3 * 8 * (4 + 2)
    part = folder(tmp_path / "part", LLAMA | {"model_type": "phi", "partial_rotary_factor": 0.5}, llama())
    assert flops_of(part).rotation == 2 * 3 * 4 * (4 + 2)
    none = folder(tmp_path / "none", LLAMA | {"model_type": "gpt2"}, llama())
    assert flops_of(none).rotation == 0


def test_names_that_are_not_known_are_said_to_be(tmp_path):
    tensors = llama() | {"model.layers.0.mixer.in_proj.weight": ("BF16", (64, 32))}
    flops = flops_of(folder(tmp_path / "m", LLAMA | {"model_type": "mixed"}, tensors))
    assert not flops.complete
    assert flops.decode[-1].parts["other"] == 2 * 64 * 32


def test_a_gate_beside_the_queries_makes_no_heads(tmp_path):
    gate = {f"model.layers.{layer}.self_attn.q_proj.weight": ("BF16", (64, 32)) for layer in range(2)}
    gated, plain = (flops_of(folder(tmp_path / name, LLAMA, llama() | more)) for name, more in (("g", gate), ("p", {})))
    assert gated.decode[-1].parts["attention_scores"] == plain.decode[-1].parts["attention_scores"]


def test_a_way_between_widths_is_work(tmp_path):
    flops = flops_of(folder(tmp_path / "m", LLAMA, llama() | {"model.decoder.project_in.weight": ("BF16", (32, 16))}))
    assert flops.prefill[-1].parts["other"] == 2 * 32 * 16


def test_heads_that_are_not_known_give_no_flops(tmp_path):
    fields = {name: value for name, value in LLAMA.items() if name != "num_attention_heads"}
    assert flops_of(folder(tmp_path / "m", fields | {"model_type": "odd"}, llama())) is None


def test_one_pass_by_three_names(plain):
    structure = structure_of(find_subject(plain))
    assert forward_work(structure, 1) == prefill_work(structure, 1)
    assert forward_work(structure, 1).total == decode_work(structure, 0).total
    every, visible = forward_work(structure, 16, every_pair=True), forward_work(structure, 16)
    assert every.total - visible.total == 2 * PAIR * (16 - 17 / 2)


def test_a_bare_config_of_ours(tmp_path):
    """The same numbers from YAML, whose tensors follow from the fields."""
    path = tmp_path / "model.yaml"
    sizes = {name: LLAMA[name] for name in LLAMA if name not in ("model_type", "rms_norm_eps")}
    path.write_text(json.dumps({**sizes, "position_embedding": "rope"}))
    assert flops_of(path).decode[-1].total == 2 * (PROJECTIONS + NETWORK + PAIR * 64) + HEAD
