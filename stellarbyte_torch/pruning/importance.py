"""Measures on text how much a model needs each of its parts."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stellarbyte.pruning.scores import Statistics, added
from stellarbyte_torch.modeling_stellarbyte import ByteForCausalLM


def measure_importance(model: ByteForCausalLM, batches: Iterable[Mapping[str, Any]]) -> Statistics:
    """The statistics that importance is computed from, in eval mode; the parameters' gradients stay as they are.

    Args:
        model: any ByteForCausalLM.
        batches: keyword arguments of its forward: input_ids, labels (-100 is not counted, as in the loss), masks.
    """
    was_training = model.training
    model.eval()
    total: Statistics | None = None
    try:
        for batch in batches:
            with _Heard(model, batch.get("attention_mask")) as heard, torch.enable_grad():
                labels = batch["labels"]
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                logits = model(**inputs, use_cache=False).logits[:, :-1].float()
                loss = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
                )
                torch.autograd.grad(loss, heard.embeddings)
            total = added(total, heard.statistics(int((labels[:, 1:] != -100).sum())))
    finally:
        model.train(was_training)
    assert total is not None
    return total


class _Heard:
    """Hooks that add up what passes through a model's layers, and the gradients of it."""

    def __init__(self, model: ByteForCausalLM, mask_BT: Tensor | None) -> None:
        self.config, self.mask_BT = model.config, mask_BT
        self.layers: Any = list(model.model.layers)
        self.embed_tokens = model.model.embed_tokens
        N, H, E = self.config.num_attention_heads, self.config.head_dim or 0, self.config.num_experts
        widths = [0 if E else width for width in self.config.intermediate_sizes]
        L = len(self.layers)
        self.heads, self.head_squares = np.zeros((L, N)), np.zeros((L, N, H))
        self.channels, self.channel_squares = ([np.zeros(width) for width in widths] for _ in range(2))
        self.experts, self.layer, self.layer_angle = np.zeros((L, E)), np.zeros(L), np.zeros(L)

    def __enter__(self) -> "_Heard":
        self._hooks = [self.embed_tokens.register_forward_hook(self._begin)]
        for index, layer in enumerate(self.layers):
            self._hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(self._heads(index)))
            self._hooks.append(layer.register_forward_hook(self._whole(index)))
            if self.config.num_experts:
                self._hooks.append(layer.mlp.gate.register_forward_hook(self._experts(index)))
            else:
                self._hooks.append(layer.mlp.down_proj.register_forward_pre_hook(self._channels(index)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def statistics(self, tokens: int) -> Statistics:
        """What was heard."""
        N, H = self.config.num_attention_heads, self.config.head_dim or 0
        head_weights = np.zeros((len(self.layers), N, H))
        channel_weights = []
        for index, layer in enumerate(self.layers):
            sums = layer.self_attn.o_proj.weight.detach().double().abs().sum(0).unflatten(0, (-1, H))
            head_weights[index, layer.self_attn.heads[0]] = sums.cpu().numpy()
            sums = (
                torch.zeros(0) if self.config.num_experts else layer.mlp.down_proj.weight.detach().double().abs().sum(0)
            )
            channel_weights.append(sums.cpu().numpy())
        return Statistics(
            tokens=tokens,
            heads=list(self.heads),
            head_squares=list(self.head_squares),
            channels=self.channels,
            channel_squares=self.channel_squares,
            experts=list(self.experts),
            layer=self.layer,
            layer_angle=self.layer_angle,
            head_weights=list(head_weights),
            channel_weights=channel_weights,
        )

    def _begin(self, _module: Any, _inputs: Any, output: Tensor) -> Tensor:
        # Everything behind embeddings that need a gradient has one, even if all parameters are frozen.
        self.embeddings = output if output.requires_grad else output.requires_grad_()
        return self.embeddings

    def _real(self, x_BTX: Tensor) -> Tensor:
        """1 for tokens, 0 for padding, float64 [B, T]."""
        if self.mask_BT is None:
            return x_BTX.new_ones(x_BTX.shape[:2], dtype=torch.float64)
        return self.mask_BT[:, -x_BTX.shape[1] :].double()

    def _heads(self, index: int) -> Any:
        def hear(_: Any, inputs: tuple[Tensor, ...]) -> None:
            x_BTNH = inputs[0].unflatten(-1, (-1, self.config.head_dim))
            heads = self.layers[index].self_attn.heads[0]
            squares_NH = torch.einsum("BTNH,BT->NH", x_BTNH.detach().double().square(), self._real(x_BTNH))
            self.head_squares[index, heads] += squares_NH.cpu().numpy()

            def hear_gradient(gradient: Tensor) -> None:
                product_BTN = (inputs[0].detach() * gradient).double().unflatten(-1, (-1, self.config.head_dim)).sum(-1)
                self.heads[index, heads] += product_BTN.abs().sum((0, 1)).cpu().numpy()

            inputs[0].register_hook(hear_gradient)

        return hear

    def _channels(self, index: int) -> Any:
        def hear(_: Any, inputs: tuple[Tensor, ...]) -> None:
            (x_BTF,) = inputs
            squares_F = torch.einsum("BTF,BT->F", x_BTF.detach().double().square(), self._real(x_BTF))
            self.channel_squares[index] += squares_F.cpu().numpy()

            def hear_gradient(gradient: Tensor) -> None:
                effect_BTF = (x_BTF.detach() * gradient).double().abs()
                self.channels[index] += effect_BTF.sum((0, 1)).cpu().numpy()

            x_BTF.register_hook(hear_gradient)

        return hear

    def _experts(self, index: int) -> Any:
        def hear(_: Any, __: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            weights_Mk, experts_Mk = output[1:]
            real_M = torch.ones(len(weights_Mk)) if self.mask_BT is None else self.mask_BT.flatten()
            sums_E = torch.zeros(self.config.num_experts, dtype=torch.float64)
            given_Mk = weights_Mk.detach().double().cpu() * real_M.double().cpu()[:, None]
            self.experts[index] += sums_E.index_add(0, experts_Mk.flatten().cpu(), given_Mk.flatten()).numpy()

        return hear

    def _whole(self, index: int) -> Any:
        def hear(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            before, after = inputs[0].detach().double(), output.detach().double()
            cosine_BT = torch.nn.functional.cosine_similarity(before, after, dim=-1)
            self.layer_angle[index] += float(((1 - cosine_BT) * self._real(output)).sum())

            def hear_gradient(gradient: Tensor) -> None:
                self.layer[index] += float(((after - before) * gradient.double()).sum(-1).abs().sum())

            output.register_hook(hear_gradient)

        return hear
