"""A folder's model, as Transformers' own class computes it: the weights of one layer are in memory at a time."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

import stellarbyte_torch  # noqa: F401 - Transformers then knows our class
from convert.verifying.filled import Parts
from convert.verifying.rows import Batch
from convert.verifying.side import EMBEDDING, HEAD, NORM, Continuation, Pins, Stage, TokenIds, strips
from convert.weights import LazyTensor
from stellarbyte.errors import UserError
from stellarbyte_torch.model_folder import MISTAKES, first_line, read_config

_ZETA = "model.rotary_emb.zeta"


class TorchSide:
    """As `Side` in PyTorch. Code that comes with the folder is never run.

    tensors: the folder's tensors, by the names of the class's parameters. budget: the bytes of them that may stay in
    memory while tokens are read one by one, which takes all weights for each. used: called with the bytes of the
    weights of each part that has computed.

    Raises:
        UserError: Transformers has no such model, or the tensors do not fit it.
    """

    name = "PyTorch"

    def __init__(
        self, folder: Path, tensors: Mapping[str, LazyTensor], budget: int, used: Callable[[int], None]
    ) -> None:
        read_config(folder)
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            config.dtype = torch.float32
            with torch.device("meta"):
                self._model: Any = AutoModelForCausalLM.from_config(
                    config, dtype=torch.float32, trust_remote_code=False
                )
        except MISTAKES as error:
            raise UserError(f"{folder} holds a model that cannot be loaded: {first_line(error)}") from error
        self._model.eval()
        self._pins = Pins(tensors, budget)
        self._parts = Parts(self._model, self._pins.tensors, str(folder), used)
        self._decoder: Any = self._model.model
        self._pad = next((i for i in (config.pad_token_id, config.eos_token_id) if isinstance(i, int)), 0)
        parameters = inspect.signature(self._model.forward).parameters
        self._cache = "cache" if "cache" in parameters else "past_key_values"  # 5.24 renamed it
        self._hear: Callable[[torch.Tensor], None] | None = None
        for module in (self._decoder.embed_tokens, *self._decoder.layers, self._decoder.norm):
            module.register_forward_hook(self._tell)

    def _tell(self, _module: Any, _arguments: Any, output: Any) -> None:
        if self._hear is not None:
            self._hear(output[0] if isinstance(output, tuple) else output)

    @contextmanager
    def _heard(self, hear: Callable[[torch.Tensor], None]) -> Iterator[None]:
        """Calls `hear` with the hidden states after embedding, each layer and final norm while the model computes."""
        self._hear = hear
        try:
            yield
        finally:
            self._hear = None

    def walk(self, batches: Sequence[Batch]) -> Iterator[Stage]:
        """As in `Side`. A batch goes through the whole model before the next."""
        layers = len(self._decoder.layers)
        names = ["embedding", *(f"layer {number}" for number in range(layers)), "norm", "logits"]
        seen = [self._forward(batch) for batch in batches]
        for name in names:
            yield Stage(name, [arrays.pop(0) for arrays in seen])

    def _forward(self, batch: Batch) -> list[np.ndarray]:
        columns = torch.from_numpy(batch.columns)
        kept: list[np.ndarray] = []
        norm = 1 + len(self._decoder.layers)  # whose hidden states are kept at all positions

        def keep(x: torch.Tensor) -> None:
            kept.append(_numpy(x if len(kept) == norm else x[:, columns]))

        with torch.no_grad(), self._heard(keep):
            logits = self._model(**_inputs(batch), use_cache=False, logits_to_keep=columns).logits
        return [*kept, _numpy(logits)]

    def bfloat16_logits(self, batch: Batch) -> np.ndarray:
        """As in `FolderSide`."""
        columns = torch.from_numpy(batch.columns)
        with torch.no_grad(), self._parts.computed_in(torch.bfloat16):
            return _numpy(self._model(**_inputs(batch), use_cache=False, logits_to_keep=columns).logits.float())

    def continued(self, prompts: Sequence[TokenIds], count: int, given_BS: np.ndarray | None) -> Continuation:
        """As in `Side`; prompts are padded on the left, as Transformers wants them, and share one cache."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        cache = DynamicCache(config=self._model.config)
        tokens, hidden, behind, largest = [], [], [], 0.0
        with torch.no_grad():
            for place in range(count + 1):
                positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                inputs = {"attention_mask": mask, "position_ids": positions, self._cache: cache, "use_cache": True}
                heard: list[torch.Tensor] = []
                with self._heard(heard.append):
                    logits_BV = self._model(ids, **inputs, logits_to_keep=1).logits[:, -1]
                if place > 0:
                    hidden.append(_numpy(heard[-1][:, -1]))
                if place == count:
                    break
                best_B = logits_BV.argmax(dim=1)
                read_B = best_B if given_BS is None else torch.from_numpy(given_BS[:, place]).long()
                behind.append(_numpy(logits_BV.amax(dim=1) - logits_BV.gather(1, read_B[:, None])[:, 0]))
                tokens.append(best_B.numpy())
                largest = max(largest, float(logits_BV.abs().max()))
                ids, mask = read_B[:, None], torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        self._pins.let_go()
        return Continuation(np.stack(tokens, 1), np.stack(hidden, 1), np.stack(behind, 1), largest)

    def gradients(self, batch: Batch) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """As in `Side`: each layer is called again with what it was called with in a forward pass, from the last on."""
        calls, before_norm = self._calls(batch)
        columns = torch.from_numpy(batch.columns)
        x_BCD = before_norm[:, columns].detach().requires_grad_()
        with self._parts.held("model.norm") as norm:
            hidden_BCD = self._decoder.norm(x_BCD)
            logits_BCV = self._model.lm_head(hidden_BCD).float()
            labels_BC = torch.from_numpy(batch.labels[:, batch.columns]).long()
            loss = torch.nn.functional.cross_entropy(logits_BCV.flatten(0, 1), labels_BC.flatten())
            few_BCD, scale, in_logits = torch.autograd.grad(loss, [x_BCD, norm["weight"], logits_BCV])
        hidden, in_logits = hidden_BCD.detach().flatten(0, 1), in_logits.flatten(0, 1)
        del loss, logits_BCV, hidden_BCD  # and with them the head
        yield "head", {NORM: _numpy(scale)}
        for rows in strips(in_logits.shape[1], hidden.shape[1]):
            yield "head", {HEAD: _numpy(in_logits[:, rows].T @ hidden)}
        del in_logits
        gradient = torch.zeros_like(before_norm)
        gradient[:, columns] = few_BCD
        in_turns: torch.Tensor | None = None
        for number in reversed(range(len(calls))):
            gradient, more, found = self._layer_gradients(number, calls.pop(), gradient)
            in_turns = more if in_turns is None or more is None else in_turns + more
            yield f"layer {number}", found
            del found
        self._decoder.embed_tokens.sparse = True  # its gradient then has the rows of the tokens that were read alone
        with self._parts.held("model.embed_tokens") as embedding:
            looked_up = self._decoder.embed_tokens(torch.from_numpy(batch.input_ids).long())
            (in_embedding,) = torch.autograd.grad(looked_up, [embedding["weight"]], gradient)
        self._decoder.embed_tokens.sparse = False
        del embedding, looked_up
        yield "embedding", {EMBEDDING: _numpy(in_embedding.coalesce().values())}
        if in_turns is not None:
            zeta = self._decoder.rotary_emb.zeta.requires_grad_()
            turns = self._decoder.rotary_emb(gradient, torch.from_numpy(batch.position_ids).long())
            yield "positions", {_ZETA: _numpy(torch.autograd.grad(turns, [zeta], in_turns)[0])}
            zeta.requires_grad_(requires_grad=False)

    def _calls(self, batch: Batch) -> tuple[list[tuple[tuple[Any, ...], dict[str, Any]]], torch.Tensor]:
        """(the arguments of each layer in a forward pass, the hidden states after the last)."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        ends: list[torch.Tensor] = []

        def note(_module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            calls.append((arguments, named))

        hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in self._decoder.layers]
        hooks.append(self._decoder.norm.register_forward_pre_hook(lambda _, arguments: ends.append(arguments[0])))
        try:
            with torch.no_grad():
                self._decoder(**_inputs(batch), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return calls, ends[0]

    def _layer_gradients(
        self, number: int, call: tuple[tuple[Any, ...], dict[str, Any]], gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, np.ndarray]]:
        """Gradients in the layer's input, in the turning of positions if that is learnt, and in its weights."""
        (x, *arguments), named = call
        x = x.detach().requires_grad_()
        inputs = [x]
        if _ZETA in self._parts.others:  # ours hands it on after the hidden states
            arguments[0] = arguments[0].detach().requires_grad_()
            inputs.append(arguments[0])
        with self._parts.held(f"model.layers.{number}") as weights:
            output = self._decoder.layers[number](x, *arguments, **named)
            output = output[0] if isinstance(output, tuple) else output
            of_all = torch.autograd.grad(
                output, [*inputs, *weights.values()], gradient, allow_unused=True, materialize_grads=True
            )
        of_inputs, of_weights = of_all[: len(inputs)], of_all[len(inputs) :]
        found = {
            f"model.layers.{number}.{name}": _numpy(array) for name, array in zip(weights, of_weights, strict=True)
        }
        return of_inputs[0], of_inputs[1] if len(inputs) > 1 else None, found


def read_fields(folder: Path) -> dict[str, Any]:
    """The fields of a folder's config.json as Transformers reads them. Raises UserError if it cannot."""
    try:
        fields: dict[str, Any] = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    except MISTAKES as error:
        raise UserError(f"{folder} holds a config.json that cannot be read: {first_line(error)}") from error
    return fields


def _inputs(batch: Batch) -> dict[str, torch.Tensor]:
    """Padding goes as attention_mask. Packed documents are known by their positions, and only without one."""
    position_ids, segment_ids = (torch.from_numpy(x).long() for x in (batch.position_ids, batch.segment_ids))
    inputs = {"input_ids": torch.from_numpy(batch.input_ids).long(), "position_ids": position_ids}
    return inputs | ({"attention_mask": (segment_ids != 0).long()} if (segment_ids == 0).any() else {})


def _numpy(x: torch.Tensor) -> np.ndarray:
    array: np.ndarray = x.detach().numpy()
    return array
