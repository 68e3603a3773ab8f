"""Measures how much the loss depends on each attention head of a model, to choose the heads for `prune_heads`."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from stellarbyte_torch.modeling_stellarbyte import ByteForCausalLM


def head_importance(model: ByteForCausalLM, batches: Iterable[Mapping[str, Any]]) -> list[torch.Tensor]:
    """The mean over labelled tokens of |gradient · activation| of each head's output: a float64 [heads] for each layer.

    The product is summed over a head's channels. To first order it is the change of the summed loss if the head output
    0 at that token (Michel et al. 2019, arXiv:1905.10650). The entries are the heads that a layer still has, in order.
    The model is in eval mode during the call; its parameters' gradients stay as they are.

    Args:
        model: any ByteForCausalLM.
        batches: keyword arguments of its forward: input_ids, labels (-100 is not counted, as in the loss), masks.
    """
    head_dim = model.config.head_dim
    assert head_dim is not None
    outputs: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        # A new tensor, so that it can require a gradient even if every parameter is frozen.
        activation = inputs[0] + 0
        activation.requires_grad_(True)
        outputs.append(activation)
        return (activation,)

    layers: Any = model.model.layers
    hooks = [layer.self_attn.o_proj.register_forward_pre_hook(keep) for layer in layers]
    was_training = model.training
    model.eval()
    totals: list[torch.Tensor] = []
    tokens = 0
    try:
        with torch.enable_grad():
            for batch in batches:
                outputs.clear()
                labels = batch["labels"]
                # The label of position t is the token at t + 1, so position t is labelled where that one is.
                labelled = torch.nn.functional.pad(labels[:, 1:] != -100, (0, 1))
                count = int(labelled.sum())
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                logits = model(**inputs, use_cache=False).logits[:, :-1].float()
                loss = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
                )
                gradients = torch.autograd.grad(loss, outputs)
                for layer, (activation, gradient) in enumerate(zip(outputs, gradients, strict=True)):
                    product = (activation.double() * gradient.double()).unflatten(-1, (-1, head_dim)).sum(-1)
                    score = (product.abs() * labelled[..., None]).sum((0, 1)).detach()
                    if layer == len(totals):
                        totals.append(torch.zeros_like(score))
                    totals[layer] += score
                tokens += count
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return [total / max(tokens, 1) for total in totals]
