"""Swaps beside running forward passes, generations and backward passes of other threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from stellarbyte.errors import UserError
from stellarbyte_torch import LoRAConfig
from stellarbyte_torch.lora import LoRAManager
from test_torch.lora_models import fill
from test_torch.tiny import tiny_model, tokens

IDS = tokens(2, 9)
# How long a forward pass stays in its middle for a swap that must not come; it is waited out where all is well.
PATIENCE = 0.3


def two_adapters(**changes: Any) -> LoRAManager:
    manager = LoRAManager(tiny_model(**changes))
    for seed, name in enumerate(("one", "two")):
        if changes:
            config = LoRAConfig(r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"])
        else:
            config = LoRAConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"])
        manager.register(name, config)
        fill(manager.model, name, seed)
    manager.activate("one")
    return manager


def logits_of(manager: LoRAManager, name: str) -> torch.Tensor:
    manager.activate(name)
    with torch.no_grad():
        return manager.model(input_ids=IDS).logits


def in_the_middle(manager: LoRAManager, action: Callable[[], None]) -> Any:
    """Do something once as the first layer of a forward pass is through."""
    first_layer = manager.model.get_base_model().model.layers[0]

    def once(*_: Any) -> None:
        handle.remove()
        action()

    handle = first_layer.register_forward_hook(once)
    return handle


@pytest.mark.parametrize("run", ["forward", "held forwards", "generate"])
def test_a_swap_waits_for_what_runs_and_then_happens(run: str) -> None:
    manager = two_adapters()
    expected = {name: logits_of(manager, name) for name in ("two", "one")}
    greedy = manager.generate(input_ids=IDS, max_new_tokens=5, do_sample=False)
    requested, swapped = threading.Event(), threading.Event()

    def swap() -> None:
        requested.wait()
        manager.activate("two")
        swapped.set()

    def ask_and_linger() -> None:
        requested.set()
        assert not swapped.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool, torch.no_grad():
        swapping = pool.submit(swap)
        in_the_middle(manager, ask_and_linger)
        if run == "forward":
            assert torch.equal(manager.model(input_ids=IDS).logits, expected["one"])
        elif run == "generate":
            assert torch.equal(manager.generate(input_ids=IDS, max_new_tokens=5, do_sample=False), greedy)
        else:
            with manager.hold():
                for _ in range(3):
                    assert torch.equal(manager.model(input_ids=IDS).logits, expected["one"])
        swapping.result()
        assert torch.equal(manager.model(input_ids=IDS).logits, expected["two"])


@pytest.mark.parametrize("changes", [{}, {"num_experts": 4, "moe_intermediate_size": 24}], ids=["dense", "experts"])
def test_many_threads_never_see_half_a_swap(changes: dict[str, int]) -> None:
    manager = two_adapters(**changes)
    expected = [logits_of(manager, name) for name in ("one", "two")]
    manager.deactivate()
    with torch.no_grad():
        expected.append(manager.model(input_ids=IDS).logits)
    stop = threading.Event()

    def forwards() -> int:
        count = 0
        while not stop.is_set() or count < 5:
            with torch.no_grad():
                actual = manager.model(input_ids=IDS).logits
            assert sum(torch.equal(actual, one) for one in expected) == 1
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(forwards) for _ in range(3)]
        try:
            for _ in range(25):
                manager.activate("one")
                manager.activate("two")
                manager.deactivate()
        finally:
            stop.set()
        assert all(future.result() >= 5 for future in running)


@pytest.mark.parametrize("what", ["rows", "experts"])
def test_what_peft_writes_into_the_model_is_not_seen_by_other_threads(what: str) -> None:
    manager = two_adapters(**({"num_experts": 4, "moe_intermediate_size": 24} if what == "experts" else {}))
    expected = logits_of(manager, "one")
    entered, finished = threading.Event(), threading.Event()

    def plain_forward() -> torch.Tensor:
        entered.wait()
        with torch.no_grad():
            actual = manager.model(input_ids=IDS).logits
        finished.set()
        return actual

    def let_the_other_try() -> None:
        entered.set()
        assert not finished.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool, torch.no_grad():
        other = pool.submit(plain_forward)
        in_the_middle(manager, let_the_other_try)
        rows = ["two", None] if what == "rows" else None
        actual = manager.forward(input_ids=IDS, adapter_names=rows).logits
        assert rows or torch.equal(actual, expected)
        assert torch.equal(other.result(), expected)


def test_a_swap_inside_a_forward_pass_is_refused_instead_of_waiting_for_itself() -> None:
    manager = two_adapters()
    in_the_middle(manager, lambda: manager.activate("two"))
    with pytest.raises(UserError, match="cannot activate an adapter inside a forward pass or a generation"):
        manager.model(input_ids=IDS)
    assert manager.active == {"one": 1.0}
    manager.activate("two")  # the failed pass is not waited for
    with manager.hold(), pytest.raises(UserError, match="cannot deactivate the adapters inside"):
        manager.deactivate()


SWAPS: dict[str, Callable[[LoRAManager], Any]] = {
    "activate an adapter": lambda manager: manager.activate("two"),
    "deactivate the adapters": lambda manager: manager.deactivate(),
    "merge": lambda manager: manager.merge(),
    "delete 'two'": lambda manager: manager.delete("two"),
    "register 'three'": lambda manager: manager.register("three", LoRAConfig(r=2, target_modules=["q_proj"])),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("from_another_thread", [False, True])
@pytest.mark.parametrize("what", SWAPS)
def test_a_swap_during_a_backward_pass_is_refused(what: str, from_another_thread: bool, checkpointing: bool) -> None:
    manager = two_adapters()
    manager.activate("one", trainable=True)
    if checkpointing:
        manager.model.train().get_base_model().gradient_checkpointing_enable()
    refusals: list[str] = []

    def swap() -> None:
        try:
            SWAPS[what](manager)
        except UserError as error:
            refusals.append(str(error))

    def during_backward(_gradient: torch.Tensor) -> None:
        if from_another_thread:
            thread = threading.Thread(target=swap)
            thread.start()
            thread.join()
        else:
            swap()

    weight = manager.model.get_base_model().model.layers[0].self_attn.v_proj.lora_B["one"].weight
    handle = weight.register_hook(during_backward)
    manager.model(input_ids=IDS, labels=IDS).loss.backward()
    handle.remove()
    assert refusals == [f"cannot {what} during a backward pass, whose gradients would be wrong: do it after backward()"]
    gradient = weight.grad.clone()

    weight.grad = None
    manager.model(input_ids=IDS, labels=IDS).loss.backward()
    assert torch.equal(weight.grad, gradient)
    swap()
    assert len(refusals) == 1


def test_a_backward_pass_that_failed_is_over() -> None:
    manager = two_adapters()
    manager.activate("one", trainable=True)
    weight = manager.model.get_base_model().model.layers[0].self_attn.v_proj.lora_B["one"].weight

    def fail(_gradient: torch.Tensor) -> None:
        raise ArithmeticError("on purpose")

    def fail_to_train() -> None:
        with pytest.raises(ArithmeticError, match="on purpose"):
            manager.model(input_ids=IDS, labels=IDS).loss.backward()

    handle = weight.register_hook(fail)
    for _ in range(2):
        fail_to_train()
    handle.remove()
    manager.activate("two")  # from the thread that failed: nothing runs there any more

    manager.activate("one", trainable=True)
    handle = weight.register_hook(fail)
    trainer = threading.Thread(target=fail_to_train)
    trainer.start()
    trainer.join()
    handle.remove()
    manager.activate("two")  # from another thread: the one that failed has ended
    assert manager.active == {"two": 1.0}


def test_a_backward_pass_over_two_forward_passes() -> None:
    manager = two_adapters()
    manager.activate("one", trainable=True)
    loss = sum(manager.model(input_ids=tokens(1, 5, seed), labels=tokens(1, 5, seed)).loss for seed in (1, 2))
    loss.backward()
    manager.activate("two")
    assert manager.active == {"two": 1.0}
