"""Gives a PyTorch model its weights part by part: they are read before a part computes, and dropped after it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from convert.verifying.side import EMBEDDING, HEAD
from convert.weights import LazyTensor
from stellarbyte.errors import UserError
from stellarbyte.read_ahead import read_ahead


class Part:
    """A module of a model on the meta device that has weights only while it computes.

    dtype: the dtype to compute in. used: called with the bytes of the weights after each computation.
    """

    def __init__(self, module: nn.Module, tensors: Mapping[str, LazyTensor], used: Callable[[int], None]) -> None:
        self.dtype = torch.float32
        self._used, self._held = used, False
        self._places: list[tuple[nn.Module, str, str, LazyTensor]] = []
        for owner_name, owner in module.named_modules():
            for leaf in owner._parameters:
                name = f"{owner_name}.{leaf}" if owner_name else leaf
                if owner._parameters[leaf] is not None:
                    self._places.append((owner, leaf, name, tensors[name]))
        self._empty = {name: owner._parameters[leaf] for owner, leaf, name, _ in self._places}
        module.register_forward_pre_hook(lambda *_: None if self._held else self._fill(differentiable=False))
        module.register_forward_hook(lambda *_: None if self._held else self._drop(), always_call=True)

    @contextmanager
    def held(self) -> Any:
        """Keeps the weights in place; yields them by name, as parameters to differentiate."""
        self._held = True
        try:
            self._fill(differentiable=True)
            yield {name: owner._parameters[leaf] for owner, leaf, name, _ in self._places}
        finally:
            self._drop()
            self._held = False

    def _fill(self, *, differentiable: bool) -> None:
        reading = read_ahead(
            ((owner, leaf), tensor.nbytes, partial(self._values, tensor)) for owner, leaf, _, tensor in self._places
        )
        for (owner, leaf), values in reading:
            owner._parameters[leaf] = nn.Parameter(values, requires_grad=differentiable)

    def _values(self, tensor: LazyTensor) -> torch.Tensor:
        return to_torch(np.asarray(tensor)).to(self.dtype)

    def _drop(self) -> None:
        for owner, leaf, name, tensor in self._places:
            owner._parameters[leaf] = self._empty[name]
            self._used(tensor.nbytes)


class Parts:
    """All parts of a causal language model that is laid out as Llama is.

    Parameters outside of them, such as a learnt zeta, are few and stay. Raises UserError for another layout.
    """

    def __init__(self, model: Any, tensors: Mapping[str, LazyTensor], where: str, used: Callable[[int], None]) -> None:
        decoder: Any = getattr(model, "model", None)
        if not all(hasattr(decoder, name) for name in ("embed_tokens", "layers", "norm")):
            raise UserError(
                f"{where} holds a {type(model).__name__}, whose layers are not where Llama has them (model.layers): "
                "verify can only compare models that are laid out as Llama is"
            )
        tied = HEAD not in tensors and bool(getattr(model.config, "tie_word_embeddings", False))
        modules = {
            "model.embed_tokens": decoder.embed_tokens,
            **{f"model.layers.{number}": layer for number, layer in enumerate(decoder.layers)},
            "model.norm": decoder.norm,
            "lm_head": model.lm_head,
        }
        wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
        if tied:
            tensors = {**tensors, HEAD: tensors[EMBEDDING]} if EMBEDDING in tensors else tensors
        _check(wanted, tensors, where)
        _fill_positions(decoder)  # only now, since a config of nonsense would make huge tables
        self._all = {name: Part(module, _below(name, tensors), used) for name, module in modules.items()}
        inside = tuple(f"{name}." for name in modules)
        self.others = {name: tensors[name] for name in wanted if not name.startswith(inside)}
        for name, tensor in self.others.items():
            owner, _, leaf = name.rpartition(".")
            values = to_torch(np.asarray(tensor)).float()
            model.get_submodule(owner)._parameters[leaf] = nn.Parameter(values, requires_grad=False)
        left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
        if left:
            raise UserError(
                f"{where} holds a {type(model).__name__} with the table {left[0]}, which verify cannot make: compare "
                "models that are laid out as Llama is"
            )

    def held(self, name: str) -> AbstractContextManager[dict[str, nn.Parameter]]:
        """The weights of one part, to differentiate: see `Part.held`."""
        held: AbstractContextManager[dict[str, nn.Parameter]] = self._all[name].held()
        return held

    @contextmanager
    def computed_in(self, dtype: torch.dtype) -> Any:
        """Lets all parts compute in another dtype."""
        for part in self._all.values():
            part.dtype = dtype
        try:
            yield
        finally:
            for part in self._all.values():
                part.dtype = torch.float32


def to_torch(values: np.ndarray) -> torch.Tensor:
    """The values as a tensor, in the same memory unless that is read-only."""
    if values.dtype.name == "bfloat16":  # torch does not know numpy's
        return torch.from_numpy(_writable(values.view(np.int16))).view(torch.bfloat16)
    return torch.from_numpy(_writable(values))


def _writable(values: np.ndarray) -> np.ndarray:
    # torch warns of arrays that are read-only, so such an array is copied.
    return values if values.flags.writeable else np.array(values)


def _below(name: str, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def _check(wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, LazyTensor], where: str) -> None:
    for name, shape in wanted.items():
        if name not in tensors:
            raise UserError(f"{where} lacks {name}, which its config.json asks for")
        if tuple(tensors[name].shape) != shape:
            there = list(tensors[name].shape)
            raise UserError(f"{where} holds {name} of shape {there}, but its config.json gives it {list(shape)}")


def _fill_positions(decoder: Any) -> None:
    """Makes the rotary tables anew: on the meta device they have no values, and no file holds them."""
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is not None:
        decoder.rotary_emb = type(rotary)(config=rotary.config)
