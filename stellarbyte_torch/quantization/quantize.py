"""Quantises the model in a folder block by block, each on what the quantised blocks before it make of the rows."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stellarbyte.errors import UserError
from stellarbyte.progress import Update
from stellarbyte_torch.quantization.blocks import EMBEDDING, HEAD, NORM, FolderModel, heard
from stellarbyte_torch.quantization.experts import Hear, linears_of
from stellarbyte_torch.quantization.fits import check_fits
from stellarbyte_torch.quantization.folder_names import on_disk
from stellarbyte_torch.quantization.grid import QuantizedWeight
from stellarbyte_torch.quantization.hidden_states import HiddenStates
from stellarbyte_torch.quantization.layer import Found, LayerQuantizer, quantized_linear
from stellarbyte_torch.quantization.positions import positions_of
from stellarbyte_torch.quantization.settings import QuantizationSettings
from stellarbyte_torch.quantization.statistics import Statistics

# Positions whose activations are held at once, and the rows of them that are kept where activations are rounded.
_BATCH_POSITIONS = 2048
_KEPT_ROWS = 4096


@dataclass(frozen=True)
class LinearError:
    """How far the output of a quantised layer is from the output of the layer before, on its calibration rows.

    name: the layer's name in the folder, without ".weight". error: the root of the mean squared difference over the
    root of the mean squared output. rounding_error: the same for plain rounding of the original weight. rows: how many
    calibration rows reached the layer; with 0, the errors are those of the weights themselves. kept_rounding: whether
    the layer got plain rounding although the method is another, because that had nothing better for it.
    """

    name: str
    error: float
    rounding_error: float
    rows: int
    kept_rounding: bool = False


@dataclass(frozen=True)
class QuantizedBlock:
    """A part of the model, with every tensor that the quantised folder holds of it.

    name: "embedding", "layer 0" and so on, or "head", which is the final norm and the output head. tensors: by their
    names in the folder; what is not quantised is in the dtype that it had. errors: of each quantised layer.
    """

    name: str
    tensors: dict[str, Tensor | QuantizedWeight]
    errors: list[LinearError] = field(default_factory=list)


def quantize_blocks(
    folder: Path,
    settings: QuantizationSettings,
    rows_NT: Tensor,
    scratch: Path,
    progress: Update = lambda _done, _whole: None,
    resume: Mapping[str, Callable[[], QuantizedBlock]] | None = None,
    device: torch.device | None = None,
) -> Iterator[QuantizedBlock]:
    """Yields the blocks of the model in `folder`, quantised, in the order in which they compute.

    folder: an export of ours, or a folder of a Llama-like family. rows_NT: the token ids to calibrate on, int64.
    scratch: a folder on disk for the rows' hidden states, which are there between one block and the next. resume: for
    blocks of an earlier call by their names, a function that reads the block back. They are yielded again as they are.
    device: where to compute; the CPU by default.

    Raises:
        UserError: the model is of no known family or quantised already, the settings do not fit it, or its activations
            are not finite.
    """
    walk = _Walk(folder, settings, rows_NT, scratch, device or torch.device("cpu"))
    names = ["embedding", *(f"layer {number}" for number in range(walk.model.depth)), "head"]
    done = resume or {}
    try:
        for place, name in enumerate(names):
            progress(place, len(names))
            earlier = done[name]() if name in done else None
            # Nobody reads the hidden states behind the last block that is still to be quantised.
            goes_on = any(later not in done for later in names[place + 1 :])
            if name == "embedding":
                yield walk.embedding(earlier, goes_on=goes_on)
            elif name == "head":
                yield earlier or walk.head()
            else:
                yield walk.layer(place - 1, earlier, goes_on=goes_on)
        progress(len(names), len(names))
    finally:
        walk.states.remove()


class _Enough(Exception):
    """Ends a layer's computation once all inputs that are wanted have been heard."""


class _Walk:
    """The calibration rows on their way through the model."""

    def __init__(
        self, folder: Path, settings: QuantizationSettings, rows_NT: Tensor, scratch: Path, device: torch.device
    ) -> None:
        self.model, self.settings, self.device = FolderModel(folder, device), settings, device
        check_fits(self.model, settings)
        self._rows_NT = rows_NT
        count, length = rows_NT.shape
        batch_rows = max(1, _BATCH_POSITIONS // length)
        self.states = HiddenStates(scratch, (count, length, self.model.config.hidden_size), batch_rows)
        self._positions_NT = positions_of(rows_NT, self.model.config.bos_token_id)
        self._keep_every = max(1, count * length // _KEPT_ROWS)

    def embedding(self, earlier: QuantizedBlock | None, *, goes_on: bool) -> QuantizedBlock:
        """Embeds the rows; the block is `earlier` if there is one."""
        weight_VD, dtype = self.model.embedding, self.model.dtype_of(EMBEDDING)
        top = int(self._rows_NT.max())
        if int(self._rows_NT.min()) < 0 or top >= len(weight_VD):
            raise UserError(
                f"the calibration rows hold token {top}, but the model has {len(weight_VD)}: use its tokenizer"
            )
        quantised = self.settings.grid.rounded(weight_VD, dtype) if self.settings.include_embeddings else None
        block = earlier or self._embedding_block(weight_VD, quantised)
        if goes_on:
            looked_up_VD = weight_VD if quantised is None else quantised.dequantized(torch.float32)
            for rows in self.states.batches():
                self.states.write(rows, nn.functional.embedding(self._rows_NT[rows].to(self.device), looked_up_VD))
        return block

    def _embedding_block(self, weight_VD: Tensor, quantised: QuantizedWeight | None) -> QuantizedBlock:
        dtype = self.model.dtype_of(EMBEDDING)
        tensors: dict[str, Tensor | QuantizedWeight] = {
            EMBEDDING: weight_VD.to(dtype) if quantised is None else quantised
        }
        tensors |= {name: values.to(self.model.dtype_of(name)) for name, values in self.model.zeta.items()}
        errors = []
        if quantised is not None:
            times_V = torch.bincount(self._rows_NT.flatten(), minlength=len(weight_VD)).to(weight_VD)
            change_V = (quantised.dequantized(torch.float32) - weight_VD).square().sum(1)
            error = math.sqrt((change_V @ times_V) / (weight_VD.square().sum(1) @ times_V).clamp(min=1e-30))
            errors = [LinearError(EMBEDDING.removesuffix(".weight"), error, error, self._rows_NT.numel())]
        return _on_cpu(QuantizedBlock("embedding", tensors, errors))

    def layer(self, number: int, earlier: QuantizedBlock | None, *, goes_on: bool) -> QuantizedBlock:
        """Quantises a decoder layer, or takes what became of it earlier, and moves the rows behind it."""
        name = f"layer {number}"
        if earlier is not None and not goes_on:
            return earlier
        with self.model.layer(number) as layer, torch.no_grad():
            if earlier is None:

                def run(hear: Hear, wanted: frozenset[str]) -> None:
                    self._run(layer, number, hear, wanted)

                # The layers of a folder share one dtype, but for a norm or a router in float32.
                dtype = self.model.dtype_of(f"{self.model.prefix(number)}self_attn.q_proj.weight")
                work = LayerQuantizer(layer, self.model.config, self.settings, dtype, self._keep_every, run)
                block = _on_cpu(self._layer_block(name, number, layer, work.quantized()))
            else:
                block = earlier
                self._put(number, layer, earlier)
            if goes_on:
                self._move(layer, number)
        return block

    def head(self) -> QuantizedBlock:
        """The final norm, and the head if it has a matrix of its own."""
        model, norm = self.model, self.model.norm
        tensors: dict[str, Tensor | QuantizedWeight] = {NORM: norm.to(model.dtype_of(NORM))}
        errors = []
        if not model.is_tied:
            weight_VD, dtype = model.head, model.dtype_of(HEAD)
            tensors[HEAD] = weight_VD.to(dtype)
            if self.settings.include_head:
                keep_every = self._keep_every if self.settings.rounds_activations else None
                statistics = Statistics(weight_VD.shape[1], self.device, keep_every)
                for rows in self.states.batches():
                    statistics.add(model.normed(self.states.read(rows, self.device), norm))
                found = quantized_linear(weight_VD, statistics, self.settings, dtype)
                tensors[HEAD] = found.weight
                errors.append(_error(HEAD.removesuffix(".weight"), found))
        return _on_cpu(QuantizedBlock("head", tensors, errors))

    def _run(self, layer: nn.Module, number: int, hear: Hear, wanted: frozenset[str]) -> None:
        """Runs the rows through a layer, each batch only until the wanted inputs have been heard."""
        for rows in self.states.batches():
            left = set(wanted)

            def listen(name: str, x: Tensor, left: set[str] = left, first: int = rows.start) -> None:
                _check_finite(x, number, first)
                hear(name, x)
                left.discard(name)
                if not left:
                    raise _Enough

            with suppress(_Enough), heard(layer, listen, round_activations=self.settings.rounds_activations):
                self._call(layer, number, rows)

    def _call(self, layer: nn.Module, number: int, rows: slice) -> Tensor:
        """What a layer makes of a batch of rows."""
        call = self.model.calls(self._positions_NT[rows].to(self.device))[number]
        return call(layer, self.states.read(rows, self.device))

    def _move(self, layer: nn.Module, number: int) -> None:
        """Replaces the rows' hidden states by those behind a layer."""
        rounds = self.settings.rounds_activations
        with heard(layer, lambda _name, _x: None, round_activations=rounds):
            for rows in self.states.batches():
                x_BTD = self._call(layer, number, rows)
                _check_finite(x_BTD, number, rows.start)
                self.states.write(rows, x_BTD)

    def _layer_block(self, name: str, number: int, layer: nn.Module, found: Mapping[str, Found]) -> QuantizedBlock:
        model, prefix = self.model, self.model.prefix(number)
        tensors: dict[str, Tensor | QuantizedWeight] = {}
        errors = []
        for linear, each in found.items():
            key = prefix + on_disk(model.model_type, linear)
            tensors[f"{key}.weight"] = each.weight
            errors.append(_error(key, each))
        for inner, parameter in layer.named_parameters():
            if self._is_quantised(inner, found):
                continue
            tensors[prefix + on_disk(model.model_type, inner)] = parameter.data.to(model.dtype_of(prefix + inner))
        return QuantizedBlock(name, tensors, errors)

    @staticmethod
    def _is_quantised(inner: str, found: Mapping[str, Any]) -> bool:
        """Whether a parameter is among the linear layers that were found; a stacked one is all of its experts."""
        stem = inner.removesuffix(".weight")
        return stem in found or f"{stem.rpartition('.')[0]}.0.down_proj" in found

    def _put(self, number: int, layer: nn.Module, block: QuantizedBlock) -> None:
        """Gives a decoder layer the tensors of a block that was quantised earlier."""
        prefix, model_type = self.model.prefix(number), self.model.model_type
        linears = linears_of(layer)
        for name, linear in linears.items():
            value = block.tensors[f"{prefix}{on_disk(model_type, name)}.weight"]
            linear.weight.copy_(value.dequantized(torch.float32) if isinstance(value, QuantizedWeight) else value)
        for inner, parameter in layer.named_parameters():
            if not self._is_quantised(inner, dict.fromkeys(linears)):
                value = block.tensors[prefix + on_disk(model_type, inner)]
                assert isinstance(value, Tensor)
                parameter.data.copy_(value)


def _check_finite(x: Tensor, number: int, first: int) -> None:
    """Raises UserError if activations of a batch, whose first row has the number `first`, are not finite."""
    if torch.isfinite(x).all():
        return
    # What an expert reads is not ordered by rows; the batch's first row stands for it then.
    row = first + (int((~torch.isfinite(x).flatten(1).all(1)).nonzero()[0]) if x.ndim == 3 else 0)
    raise UserError(
        f"layer {number} makes numbers that are not finite of calibration row {row}: the model is broken, or its "
        "activations are too large for float32; take an earlier one"
    )


def _error(name: str, found: Found) -> LinearError:
    return LinearError(name, found.error, found.rounding_error, found.rows, found.kept_rounding)


def _on_cpu(block: QuantizedBlock) -> QuantizedBlock:
    tensors = {
        key: value.on_cpu() if isinstance(value, QuantizedWeight) else value.cpu().contiguous()
        for key, value in block.tensors.items()
    }
    return replace(block, tensors=tensors)
