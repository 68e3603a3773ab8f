"""Quantises the model in a folder block by block: the seams that the walk and the writers of folders share."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from stellarbyte_torch.quantization.grid import QuantizedWeight
from stellarbyte_torch.quantization.settings import QuantizationSettings


@dataclass(frozen=True)
class LinearError:
    """How far the output of a quantised layer is from the output of the layer before, on its calibration rows.

    name: the layer's name in the folder, without ".weight". error: the root of the mean squared difference over the
    root of the mean squared output. rounding_error: the same for plain rounding of the original weight. rows: how many
    calibration rows reached the layer; with 0, the errors are those of the weights themselves. kept_rounding: whether
    the method would have been worse here, so that plain rounding was kept.
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


# Takes the amount of work that is done and the whole.
Progress = Callable[[int, int | None], None]


def quantize_blocks(
    folder: Path,
    settings: QuantizationSettings,
    rows_NT: Tensor,
    scratch: Path,
    progress: Progress = lambda _done, _whole: None,
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
    raise NotImplementedError
