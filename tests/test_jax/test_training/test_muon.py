"""Muon is PyTorch's for every matrix of a stack, whose matrices know nothing of each other, on a mesh as well."""

import re
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch

from stellarbyte_jax.config import MeshConfig, OptimizerConfig
from stellarbyte_jax.sharding import Layout, make_mesh
from stellarbyte_jax.training.muon import scale_by_muon
from stellarbyte_jax.training.optimizer import make_optimizer
from stellarbyte_jax.training.param_traits import Trait

# Layers, experts of layers, wide, tall and square matrices, two stacks of one shape; and a matrix that is not Muon's.
SHAPES = {
    "q": (3, 6, 6),
    "k": (3, 6, 4),
    "gate": (3, 6, 9),
    "down": (3, 9, 6),
    "experts": (2, 3, 4, 6),
    "embed": (5, 6),
}
TRAITS = {name: Trait(stack=len(shape) - 2, matrix=name != "embed") for name, shape in SHAPES.items()}


MATRIX = scale_by_muon(0.9, {"it": Trait(matrix=True)})


def random_tree(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def matrices(tree: dict[str, Any]) -> dict[tuple[str, int], np.ndarray]:
    """Every single matrix."""
    flat = {name: np.asarray(array).reshape(-1, *array.shape[-2:]) for name, array in tree.items()}
    return {(name, index): matrix for name, stack in flat.items() for index, matrix in enumerate(stack)}


def test_eight_updates_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch iterates in bfloat16, whose rounding would hide what is compared.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    config = OptimizerConfig(learning_rate=0.05, warmup_steps=0, lr_scheduler_type="constant", optim="muon")
    rng = np.random.default_rng(0)
    params: Any = random_tree(rng)
    optimizer = make_optimizer(config, 8, TRAITS)
    state, update = optimizer.init(params), jax.jit(optimizer.update)

    theirs = {key: torch.nn.Parameter(torch.tensor(matrix.T)) for key, matrix in matrices(params).items()}
    ours_alone = theirs["embed", 0]
    muon = torch.optim.Muon(
        [tensor for key, tensor in theirs.items() if key[0] != "embed"],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.muon_momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    betas = config.adam_beta1, config.adam_beta2
    adamw = torch.optim.AdamW([ours_alone], config.learning_rate, betas, weight_decay=config.weight_decay)
    for _ in range(8):
        gradients = random_tree(rng)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for key, gradient in matrices(gradients).items():
            theirs[key].grad = torch.tensor(gradient.T)
        torch.nn.utils.clip_grad_norm_(theirs.values(), config.max_grad_norm)
        muon.step()
        adamw.step()
    for key, matrix in matrices(params).items():
        np.testing.assert_allclose(matrix, theirs[key].detach().numpy().T, rtol=1e-4, atol=1e-5, err_msg=str(key))


def test_a_matrix_of_a_stack_is_treated_as_if_it_were_alone() -> None:
    rng = np.random.default_rng(1)
    gradients = {name: array for name, array in random_tree(rng).items() if name != "embed"}
    muon = scale_by_muon(0.9, TRAITS)
    together, _ = jax.jit(muon.update)(gradients, muon.init(gradients))
    for key, gradient in matrices(gradients).items():
        x = gradient.astype(np.float64) / np.linalg.norm(gradient)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x - 4.775 * gram @ x + 2.0315 * gram @ gram @ x
        expected = 0.2 * max(x.shape) ** 0.5 * x
        np.testing.assert_allclose(matrices(together)[key], expected, rtol=1e-4, atol=1e-5, err_msg=str(key))


def test_an_update_is_nearly_orthogonal_and_as_large_as_adams() -> None:
    gradient = np.random.default_rng(2).normal(size=(1, 64, 24)).astype(np.float32)
    updates, _ = MATRIX.update({"it": gradient}, MATRIX.init({"it": gradient}))
    u, _, v = np.linalg.svd(gradient[0], full_matrices=False)
    turned = u.T @ np.asarray(updates["it"])[0] @ v.T / (0.2 * 64**0.5)
    assert (np.diag(turned) > 0.6).all() and (np.diag(turned) < 1.3).all()
    np.testing.assert_allclose(turned - np.diag(np.diag(turned)), 0, atol=1e-4)
    assert np.sqrt(np.mean(np.square(updates["it"]))) == pytest.approx(0.2, rel=0.2)


def test_no_gradient_is_no_update() -> None:
    """As that of adapters in a layer that has none."""
    gradient = np.zeros((2, 4, 4), np.float32)
    gradient[1] = np.eye(4)
    updates, _ = MATRIX.update({"it": gradient}, MATRIX.init({"it": gradient}))
    assert not np.any(updates["it"][0]) and np.all(np.isfinite(updates["it"])) and np.any(updates["it"][1])


def test_whole_matrices_are_dealt_out_so_that_no_product_waits() -> None:
    """On eight devices: what they have of matrices is sent there and back once, and nothing is made whole."""
    layout = Layout(make_mesh(MeshConfig(data=1, fsdp=2, expert=2, tensor=2)))
    axes = {
        "q": ("layers", "hidden", "heads"),
        "o": ("layers", "heads", "hidden"),
        "down": ("layers", "feed_forward", "hidden"),
        "experts": ("layers", "expert", "hidden", "feed_forward"),
    }
    shapes = {"q": (3, 8, 8), "o": (3, 8, 8), "down": (3, 16, 8), "experts": (3, 2, 8, 12)}
    traits = {name: Trait(axes=names, stack=len(names) - 2, matrix=True) for name, names in axes.items()}
    rng = np.random.default_rng(3)
    gradients = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def program(muon: optax.GradientTransformation) -> Any:
        return jax.jit(lambda gradients: muon.update(gradients, muon.init(gradients))[0])

    lie = {name: layout.sharding(*names) for name, names in axes.items()}
    spread = program(scale_by_muon(0.9, traits, layout)).lower(jax.device_put(gradients, lie)).compile()
    sent = re.findall(r"= .* (all-[\w-]+|reduce-scatter|collective-[\w-]+)\(", spread.as_text())
    # Three batches, q with o; by fsdp and by tensor, there and back.
    assert sent == ["all-to-all"] * (3 * 2 * 2)
    expected = program(scale_by_muon(0.9, traits))(gradients)
    for name, ours in spread(jax.device_put(gradients, lie)).items():
        np.testing.assert_allclose(ours, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
        assert ours.sharding.is_equivalent_to(lie[name], ours.ndim)
