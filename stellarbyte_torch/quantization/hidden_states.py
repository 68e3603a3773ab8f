"""The hidden states of the calibration rows between two blocks: in a file, so that memory holds one batch of them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_NAME = "hidden_states.float32"


class HiddenStates:
    """N rows of T positions with D channels each. It works through batches of rows, in order.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], batch_rows: int) -> None:
        self.rows, self._shape, self._batch_rows = shape[0], shape, batch_rows
        self._path = folder / _NAME
        self._path.write_bytes(b"")

    def batches(self) -> Iterator[slice]:
        """The numbers of the rows of each batch."""
        for start in range(0, self.rows, self._batch_rows):
            yield slice(start, min(start + self._batch_rows, self.rows))

    def read(self, rows: slice, device: torch.device) -> Tensor:
        """The rows of a batch, float32 [B, T, D]."""
        _, T, D = self._shape
        count = (rows.stop - rows.start) * T * D
        with self._path.open("rb") as file:
            values = np.fromfile(file, np.float32, count, offset=4 * rows.start * T * D)
        return torch.from_numpy(values.reshape(-1, T, D)).to(device)

    def write(self, rows: slice, x_BTD: Tensor) -> None:
        """Stores the rows of a batch."""
        with self._path.open("r+b") as file:
            file.seek(4 * rows.start * self._shape[1] * self._shape[2])
            file.write(x_BTD.float().cpu().contiguous().numpy().tobytes())

    def remove(self) -> None:
        """Removes the file."""
        self._path.unlink(missing_ok=True)
