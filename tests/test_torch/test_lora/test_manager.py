"""LoRAManager: swapping, mixing, merging and rows, with the base untouched to the bit."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from torch import nn
from torch._dynamo.testing import CompileCounter

from stellarbyte.errors import UserError
from stellarbyte_torch import LoRAConfig
from stellarbyte_torch.lora import LoRAManager, apply_lora_to_model
from test_torch.lora_models import MODELS, bits, fill, is_unchanged
from test_torch.tiny import relative_error, tiny_model, tokens

IDS = tokens(3, 9)
FRENCH = LoRAConfig(r=4, target_modules=["q_proj", "v_proj"])
MATHS = LoRAConfig(r=2, target_modules=["q_proj", "down_proj"], lora_alpha=3)


def manager_of(base: nn.Module, **configs: LoRAConfig) -> LoRAManager:
    manager = LoRAManager(base)
    for seed, (name, config) in enumerate((configs or {"french": FRENCH, "maths": MATHS}).items()):
        manager.register(name, config)
        fill(manager.model, name, seed)
    return manager


def logits(model: Any, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, **kwargs).logits


def alone(kind: str, config: LoRAConfig, seed: int) -> torch.Tensor:
    """The logits of a model that never had another adapter."""
    return logits(fill(apply_lora_to_model(MODELS[kind](), config), seed=seed).eval())


@pytest.mark.parametrize("kind", MODELS)
def test_swapping_is_as_if_there_were_one_adapter(kind: str) -> None:
    base = MODELS[kind]()
    expected, before = logits(base), bits(base)
    manager = manager_of(base)
    assert manager.names == ["french", "maths"] and manager.active == {}
    assert torch.equal(logits(manager.model), expected)
    for _ in range(2):
        manager.activate("french")
        assert torch.equal(logits(manager.model), alone(kind, FRENCH, 0))
        manager.activate("maths")
        assert torch.equal(logits(manager.model), alone(kind, MATHS, 1))
    manager.deactivate()
    assert torch.equal(logits(manager.model), expected) and is_unchanged(base, before)


def test_registering_leaves_what_is_active_alone() -> None:
    manager = manager_of(tiny_model())
    manager.activate("french", trainable=True)
    before = logits(manager.model)
    manager.register("third", LoRAConfig(r=3, target_modules=["k_proj", "q_proj"]))
    fill(manager.model, "third", 9)
    assert torch.equal(logits(manager.model), before) and manager.active == {"french": 1.0}
    assert not manager.model.training
    trained = [name for name, parameter in manager.model.named_parameters() if parameter.requires_grad]
    assert trained and all(".french." in name for name in trained)
    manager.activate("french")
    assert not any(parameter.requires_grad for parameter in manager.model.parameters())


def test_a_model_with_an_adapter_is_taken_over() -> None:
    model = fill(apply_lora_to_model(tiny_model(), FRENCH)).eval()
    expected = logits(model)
    manager = LoRAManager(model)
    assert manager.active == {"default": 1.0}
    manager.register("maths", MATHS)
    assert torch.equal(logits(manager.model), expected)
    assert all(p.requires_grad for name, p in manager.model.named_parameters() if ".default." in name)


def test_weights_scale_each_adapters_update() -> None:
    base = tiny_model()
    expected = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    manager = manager_of(base)
    weights = {"french": 0.5, "maths": -2.0}
    manager.activate(weights)
    actual = logits(manager.model)
    for name, module in base.named_modules():
        for adapter, weight in weights.items():
            if adapter in getattr(module, "lora_A", {}):
                scaling = manager.model.peft_config[adapter].lora_alpha / manager.model.peft_config[adapter].r
                update = module.lora_B[adapter].weight @ module.lora_A[adapter].weight
                expected[f"{name}.weight"] += weight * scaling * update.detach()
    by_hand = tiny_model()
    by_hand.load_state_dict(expected)
    assert relative_error(actual, logits(by_hand)) < 1e-5
    manager.activate("french")  # whose weight is 1 again
    assert torch.equal(logits(manager.model), alone("byte", FRENCH, 0))


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_is_undone_and_repeated_to_the_bit(fields: dict[str, Any], dtype: torch.dtype) -> None:
    base = tiny_model().to(dtype)
    before = bits(base)
    manager = manager_of(base, one=LoRAConfig(r=4, target_modules=["q_proj", "up_proj"], **fields))
    manager.activate({"one": 0.5})
    beside = logits(manager.model)
    drift = manager.merge()
    assert manager.is_merged and drift.modules == 4 and (drift.share > 0) == (dtype == torch.bfloat16)
    merged_once = logits(manager.model)
    assert relative_error(merged_once, beside) < (1e-5 if dtype == torch.float32 else 5e-2)
    first = base.model.layers[0].self_attn.q_proj.base_layer.weight.clone()
    assert not torch.equal(first, before["model.layers.0.self_attn.q_proj.weight"])

    manager.unmerge()
    assert is_unchanged(base, before) and torch.equal(logits(manager.model), beside)
    manager.merge()
    assert torch.equal(base.model.layers[0].self_attn.q_proj.base_layer.weight, first)
    assert torch.equal(logits(manager.model), merged_once)
    manager.deactivate()
    assert is_unchanged(base, before) and not manager.is_merged


def test_registering_and_deleting_beside_a_merged_adapter() -> None:
    base = tiny_model()
    before = bits(base)
    manager = manager_of(base)
    manager.activate("french")
    manager.merge()
    merged = logits(manager.model)
    manager.register("third", LoRAConfig(r=3, target_modules=["q_proj", "o_proj"]))
    assert manager.is_merged and torch.equal(logits(manager.model), merged)
    manager.delete("maths")
    assert manager.is_merged and torch.equal(logits(manager.model), merged)
    manager.delete("french")
    assert manager.active == {} and not manager.is_merged and is_unchanged(base, before)


def test_the_last_adapter_leaves_the_plain_base() -> None:
    base = tiny_model()
    expected = logits(base)
    manager = manager_of(base)
    manager.activate("maths")
    for name in ("french", "maths"):
        manager.delete(name)
    assert manager.names == [] and manager.model is base
    assert not any("lora" in name for name, _ in base.named_parameters())
    assert torch.equal(logits(base), expected)
    manager.register("again", FRENCH)
    fill(manager.model, "again", 0)
    manager.activate("again")
    assert torch.equal(logits(manager.model), alone("byte", FRENCH, 0))


def test_rows_have_adapters_of_their_own() -> None:
    base = tiny_model()
    rows = [logits(base)[2]]
    manager = manager_of(base)
    manager.activate({"french": 3.0})  # which rows do not know of
    before = logits(manager.model)
    rows = [alone("byte", FRENCH, 0)[0], alone("byte", MATHS, 1)[1], *rows]
    with torch.no_grad():
        actual = manager.forward(input_ids=IDS, adapter_names=["french", "maths", None]).logits
    assert all(relative_error(row, expected) < 1e-5 for row, expected in zip(actual, rows, strict=True))
    assert torch.equal(logits(manager.model), before)

    generated = manager.generate(
        input_ids=IDS, adapter_names=["french", "maths", None], max_new_tokens=4, do_sample=False
    )
    for row, name in enumerate(["french", "maths", None]):
        manager.activate(name) if name else manager.deactivate()
        expected = manager.generate(input_ids=IDS[row : row + 1], max_new_tokens=4, do_sample=False)
        assert torch.equal(generated[row : row + 1], expected)


def test_rows_that_fail_leave_nothing_behind() -> None:
    manager = manager_of(tiny_model())
    manager.activate("french")
    for _ in range(2):
        with pytest.raises(ValueError, match="Length of `adapter_names` should be the same as the number of inputs"):
            manager.forward(input_ids=IDS, adapter_names=["maths"])
        assert torch.equal(logits(manager.model), alone("byte", FRENCH, 0))


def test_adapters_that_bring_whole_modules_along() -> None:
    base = tiny_model()
    expected, before = logits(base), bits(base)
    config = LoRAConfig(r=2, target_modules=["q_proj"], train_head=True)
    manager = manager_of(base, one=config, two=config, three=FRENCH)
    for step, name in enumerate(("one", "two"), start=1):
        base.lm_head.modules_to_save[name].weight.data *= 1.0 + step
    outputs = []
    for adapters in ("one", "two", {"two": 1.0, "three": 1.0}, "three"):
        manager.activate(adapters)
        outputs.append(logits(manager.model))
    assert all(not torch.equal(one, other) for i, one in enumerate(outputs) for other in outputs[:i])
    assert torch.equal(outputs[3], alone("byte", FRENCH, 2))
    with pytest.raises(
        UserError, match="adapters one, two bring whole modules along, which do not add up: activate one"
    ):
        manager.activate({"one": 1.0, "two": 1.0})
    assert manager.active == {"three": 1.0}
    manager.activate("two")
    manager.delete("two")
    assert torch.equal(logits(manager.model), expected) and is_unchanged(base, before)
    manager.activate("one")
    assert torch.equal(logits(manager.model), outputs[0])


def test_a_nonlinear_adapter_beside_adapters_that_peft_put_on() -> None:
    manager = LoRAManager(peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["q_proj"])))
    with pytest.raises(UserError, match="activation 'relu' cannot join adapters that peft itself put on this model"):
        manager.register("bent", LoRAConfig(target_modules=["q_proj"], activation="relu"))
    assert manager.names == ["default"]


def test_saved_and_registered_again(tmp_path: Path) -> None:
    manager = manager_of(tiny_model())
    for name in manager.names:
        manager.save(name, tmp_path / name)
        assert {file.name for file in (tmp_path / name).iterdir()} >= {
            "adapter_config.json",
            "adapter_model.safetensors",
        }
    other = LoRAManager(tiny_model())
    for name in manager.names:
        other.register(name, tmp_path / name)
        manager.activate(name)
        other.activate(name)
        assert torch.equal(logits(other.model), logits(manager.model))
        stock = PeftModel.from_pretrained(tiny_model(), tmp_path / name)
        assert torch.equal(logits(stock), logits(manager.model))


def test_each_adapter_is_held_once() -> None:
    base = tiny_model()
    size = sum(parameter.numel() for parameter in base.parameters())
    manager = manager_of(base, **{f"adapter{n}": FRENCH for n in range(8)})
    one = sum(p.numel() for name, p in manager.model.named_parameters() if ".adapter0." in name)
    for n in range(8):
        manager.activate(f"adapter{n}")
    assert sum(parameter.numel() for parameter in manager.model.parameters()) == size + 8 * one
    manager.delete("adapter3")
    assert sum(parameter.numel() for parameter in manager.model.parameters()) == size + 7 * one


def test_a_compiled_model_swaps_without_compiling_again() -> None:
    base = tiny_model()
    expected, before = logits(base), bits(base)
    manager = manager_of(base)
    manager.activate({"french": 0.5, "maths": 2.0})
    mixed = logits(manager.model)
    counter = CompileCounter()
    torch._dynamo.reset()
    manager.compile(rank=6, backend=counter, fullgraph=True)
    with torch.no_grad():
        assert relative_error(manager.forward(input_ids=IDS).logits, mixed) < 1e-5
        for _ in range(2):
            manager.activate("french")
            assert relative_error(manager.forward(input_ids=IDS).logits, alone("byte", FRENCH, 0)) < 1e-5
            manager.activate("maths")
            assert relative_error(manager.forward(input_ids=IDS).logits, alone("byte", MATHS, 1)) < 1e-5
            manager.deactivate()
            assert torch.equal(manager.forward(input_ids=IDS).logits, expected)
    assert counter.frame_count == 1 and is_unchanged(base, before)
    assert manager.names == ["french", "maths"]


def test_what_a_compiled_slot_cannot_hold_is_refused() -> None:
    manager = manager_of(tiny_model())
    with pytest.raises(UserError, match=r"rank 4 at model.layers.0.self_attn.q_proj exceeds the compiled slot's 3"):
        manager.compile(rank=3, backend="eager")
    manager.compile(backend="eager")
    with pytest.raises(UserError, match=r"rank 6 at .* exceeds the compiled slot's 4: give compile\(\) more"):
        manager.activate({"french": 1.0, "maths": 1.0})
    manager.register("wide", LoRAConfig(r=2, target_modules=["k_proj"]))
    with pytest.raises(
        UserError, match=r"no place at model\.layers\.0\.self_attn\.k_proj: register that adapter before"
    ):
        manager.activate("wide")
    manager.register("dora", LoRAConfig(r=2, target_modules=["q_proj"], use_dora=True))
    with pytest.raises(UserError, match="'dora' sets use_dora, which a compiled slot cannot imitate"):
        manager.activate("dora")
    with pytest.raises(UserError, match="keeps its adapters in a slot: merge_and_save"):
        manager.merge()
    with pytest.raises(UserError, match="do not train: train before compile"):
        manager.activate("french", trainable=True)
    manager.activate("french")
    assert relative_error(logits(manager.model), alone("byte", FRENCH, 0)) < 1e-5


def test_bad_requests_are_refused_in_one_sentence() -> None:
    manager = LoRAManager(tiny_model())
    with pytest.raises(UserError, match="no adapter is registered, so the slot's modules are unknown"):
        manager.compile()
    with pytest.raises(UserError, match="adapter 'french' is not registered: there are none"):
        manager.activate("french")
    manager = manager_of(tiny_model())
    with pytest.raises(UserError, match="adapter 'spanish' is not registered: there are french, maths"):
        manager.activate({"french": 1.0, "spanish": 1.0})
    with pytest.raises(UserError, match="adapter 'spanish' is not registered"):
        manager.forward(input_ids=IDS, adapter_names=["french", "spanish", None])
    with pytest.raises(UserError, match="adapter name 'french' is in use"):
        manager.register("french", FRENCH)
    with pytest.raises(UserError, match="no adapter is active, so there is nothing to merge"):
        manager.merge()
    with pytest.raises(UserError, match="nothing is merged"):
        manager.unmerge()
    with pytest.raises(UserError, match="no adapter to activate"):
        manager.activate({})
    manager.activate("french")
    manager.merge()
    with pytest.raises(UserError, match="merged already"):
        manager.merge()


def test_a_failed_registration_leaves_no_trace() -> None:
    manager = manager_of(tiny_model())
    manager.activate("maths")
    before = logits(manager.model)
    with pytest.raises(UserError, match="matches no module"):
        manager.register("third", LoRAConfig(r=2, target_modules=["query"]))
    assert manager.names == ["french", "maths"] and torch.equal(logits(manager.model), before)
