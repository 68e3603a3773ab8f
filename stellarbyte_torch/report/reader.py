"""Looks inside a folder's model, ours or a stock one, while it reads a text."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stellarbyte.pruning.scores import worth_of_heads
from stellarbyte.report.attention_sums import AttentionSums
from stellarbyte.report.measurements import AttentionFacts
from stellarbyte_torch.evaluation.scorer import TorchScorer
from stellarbyte_torch.modeling_stellarbyte import ByteForCausalLM
from stellarbyte_torch.pruning.importance import measure_importance

# The names of the projection behind a layer's heads, in Llama's family, GPT-2, GPT-NeoX and Falcon, OPT.
_OUTPUTS = ("o_proj", "c_proj", "dense", "out_proj")


class TorchReader:
    """A causal language model in a folder; see stellarbyte.report.on_text.Reader."""

    def __init__(self, scorer: TorchScorer) -> None:
        self.scorer, self._model = scorer, scorer.model
        config = self._model.config.get_text_config()
        self._heads = int(getattr(config, "num_attention_heads", 0))
        self._layers = int(getattr(config, "num_hidden_layers", 0))

    def attention(self, ids_T: np.ndarray, texts: Sequence[str]) -> AttentionFacts | str:
        """See Reader."""
        found: list[tuple[np.ndarray, list[int] | None]] = []

        def hear(module: Any, _: Any, output: Any) -> None:
            weights = next((x for x in output if isinstance(x, Tensor) and x.ndim == 4), None)
            if weights is not None and weights.shape[-2] == len(ids_T):
                numbers = module.heads[0] if isinstance(self._model, ByteForCausalLM) else None
                found.append((weights[0].float().cpu().numpy(), numbers))

        with torch.no_grad(), self._eagerly() as is_eager, self._hooked(hear):
            if is_eager:
                self._model(self._ids(ids_T), use_cache=False)
        if len(found) != self._layers or any(len(weights) > self._heads for weights, _ in found):
            kind = type(self._model).__name__
            return f"where the heads of {self.scorer.name} look is not known, because {kind} does not give it"
        sums = AttentionSums(self._heads)
        for weights_NTS, numbers in found:
            sums.add(weights_NTS, numbers)
        return sums.facts(texts)

    def heads(self, rows: Sequence[np.ndarray]) -> tuple[tuple[float | None, ...], ...] | str:
        """See Reader."""
        if isinstance(self._model, ByteForCausalLM):
            batches = ({"input_ids": self._ids(row), "labels": self._ids(row)} for row in rows)
            return worth_of_heads(measure_importance(self._model, batches), self._model.config.pruned_heads)
        sums_LN = self._effects(rows)
        if sums_LN is None:
            kind = type(self._model).__name__
            return f"what the heads of {self.scorer.name} are worth is not known, because {kind} joins them otherwise"
        tokens = sum(len(row) - 1 for row in rows)
        return tuple(tuple((sums_N / tokens).tolist()) for sums_N in sums_LN)

    def _effects(self, rows: Sequence[np.ndarray]) -> np.ndarray | None:
        """The sums of |Σ gradient · output| of each head [L, N], as Statistics.heads; None if heads are not found."""
        outputs: list[Any] = []
        for attention in self._attentions():
            outputs += [getattr(attention, name) for name in _OUTPUTS if hasattr(attention, name)][:1]
        sums_LN = np.zeros((self._layers, self._heads))
        if len(outputs) != self._layers or not self._heads:
            return None
        fits = []

        def hear(layer: int) -> Any:
            def of(_: Any, inputs: tuple[Tensor, ...]) -> None:
                (x_BTX,) = inputs
                fits.append(x_BTX.shape[-1] % self._heads == 0)
                if not fits[-1]:
                    return

                def of_gradient(gradient_BTX: Tensor) -> None:
                    product_BTN = (x_BTX.detach() * gradient_BTX).double().unflatten(-1, (self._heads, -1)).sum(-1)
                    sums_LN[layer] += product_BTN.abs().sum((0, 1)).cpu().numpy()

                x_BTX.register_hook(of_gradient)

            return of

        embedded: list[Tensor] = []

        def begin(_: Any, __: Any, output: Tensor) -> Tensor:
            # Everything behind embeddings that need a gradient has one, even if all parameters are frozen.
            embedded.append(output if output.requires_grad else output.requires_grad_())
            return embedded[-1]

        hooks = [self._model.get_input_embeddings().register_forward_hook(begin)]
        hooks += [output.register_forward_pre_hook(hear(layer)) for layer, output in enumerate(outputs)]
        try:
            for row in rows:
                ids = self._ids(row)
                with torch.enable_grad():
                    logits_TV = self._model(ids, use_cache=False).logits[0, :-1].float()
                    loss = torch.nn.functional.cross_entropy(logits_TV, ids[0, 1:], reduction="sum")
                    torch.autograd.grad(loss, embedded.pop())
        finally:
            for hook in hooks:
                hook.remove()
        return sums_LN if all(fits) else None

    def _attentions(self) -> list[Any]:
        """The attention of each layer, in their order."""
        found = [module for module in self._model.modules() if type(module).__name__.endswith("Attention")]
        return [module for module in found if not any(child in found for child in module.children())]

    @contextmanager
    def _hooked(self, hear: Any) -> Iterator[None]:
        hooks = [module.register_forward_hook(hear) for module in self._attentions()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _eagerly(self) -> Iterator[bool]:
        """Has attention computed with its weights in memory, if the model can; yields whether it can."""
        before = self._model.config._attn_implementation
        try:
            self._model.set_attn_implementation("eager")
        except (ValueError, AttributeError):
            yield False
            return
        try:
            yield True
        finally:
            self._model.set_attn_implementation(before)

    def _ids(self, row_T: np.ndarray) -> Tensor:
        return torch.from_numpy(row_T[None].astype(np.int64)).to(self._model.device)
