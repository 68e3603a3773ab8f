"""The regularisation of A and B, against PEFT's AdaLoRA and against sums written out."""

from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model

from stellarbyte_torch import LoRAConfig
from stellarbyte_torch.lora import LoRAManager, apply_lora_to_model, regularisation
from test_torch.lora_models import Mixed, fill, llama
from test_torch.tiny import relative_error, tiny_model, tokens


def test_the_orthogonal_term_is_adaloras() -> None:
    ids, targets = tokens(2, 7), ["q_proj", "v_proj", "down_proj"]
    adalora = get_peft_model(
        llama(),
        AdaLoraConfig(init_r=4, total_step=9, tinit=1, tfinal=1, orth_reg_weight=0.25, target_modules=targets,
                      task_type="CAUSAL_LM"),
    )  # fmt: skip
    model = apply_lora_to_model(llama(), LoRAConfig(r=4, target_modules=targets, orthogonal_reg=0.25))
    source = dict(adalora.named_parameters())
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = source[name.removesuffix(".weight")].detach().clone()
    with torch.no_grad():
        expected = adalora(input_ids=ids, labels=ids).loss
        adalora.peft_config["default"].orth_reg_weight = 0.0
        expected = expected - adalora(input_ids=ids, labels=ids).loss
    assert regularisation(model).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("target", ["embedding", "convolution", "conv1d", "linear"])
def test_every_kind_of_layer(target: str) -> None:
    model = fill(apply_lora_to_model(Mixed(), LoRAConfig(r=2, target_modules=[target], orthogonal_reg=2.0, l2_reg=3.0)))
    factors = {name: parameter.flatten(1) for name, parameter in model.named_parameters() if "lora_" in name}
    A, B = (next(p for name, p in factors.items() if f"_{letter}." in name) for letter in "AB")
    distances = [torch.linalg.norm(gram - torch.eye(2)) for gram in (A @ A.T, B.T @ B)]
    expected = 2.0 * sum(distances) / 2 + 3.0 * (A.square().sum() + B.square().sum())
    assert relative_error(regularisation(model), expected) < 1e-5


def test_experts_count_one_by_one() -> None:
    config = LoRAConfig(r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"], orthogonal_reg=1.0)
    model = fill(apply_lora_to_model(tiny_model(num_experts=4, moe_intermediate_size=24), config))
    distances = []
    for layer in model.get_base_model().model.layers:
        wrapper = layer.mlp.experts
        for expert in range(4):
            single = torch.zeros(4, 32, 24)
            single[expert] = wrapper.get_delta_weight("default")[expert]
            A = wrapper.lora_A["default"].weight.view(4, 2, 24)[expert]
            B = wrapper.lora_B["default"].weight.view(32, 2, 4)[:, :, expert]
            assert relative_error(wrapper.scaling["default"] * B @ A, single[expert]) < 1e-5
            distances += [torch.linalg.norm(A @ A.T - torch.eye(2)), torch.linalg.norm(B.T @ B - torch.eye(2))]
    assert relative_error(regularisation(model), torch.stack(distances).mean()) < 1e-5


def test_it_trains_a_and_b_towards_orthogonal_rows() -> None:
    config = LoRAConfig(r=4, target_modules=["q_proj"], orthogonal_reg=1.0)
    model = fill(apply_lora_to_model(tiny_model(), config))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.02)
    first = regularisation(model).item()
    for _ in range(60):
        optimizer.zero_grad()
        regularisation(model).backward()
        optimizer.step()
    assert regularisation(model).item() < 0.05 * first


@pytest.mark.parametrize("fields", [{}, {"orthogonal_reg": 0.0, "l2_reg": 0.0}])
def test_switched_off_it_is_zero(fields: dict[str, Any]) -> None:
    model = fill(apply_lora_to_model(tiny_model(), LoRAConfig(target_modules=["q_proj"], **fields)))
    assert regularisation(model).item() == 0.0


def test_only_the_active_adapters_count() -> None:
    manager = LoRAManager(tiny_model())
    for seed, name in enumerate(("one", "two")):
        manager.register(name, LoRAConfig(r=2, target_modules=["q_proj"], l2_reg=1.0))
        fill(manager.model, name, seed)
    totals = []
    for names in ({"one": 1.0}, {"two": 1.0}, {"one": 1.0, "two": 1.0}):
        manager.activate(names)
        totals.append(regularisation(manager.model).item())
    assert totals[2] == pytest.approx(totals[0] + totals[1]) and totals[0] != totals[1]
