"""Casts weights to the dtype of an export, and refuses those that are outside its range."""

from collections.abc import MutableMapping

import ml_dtypes
import numpy as np

from stellarbyte.errors import UserError


def cast(
    values: np.ndarray, dtype: np.dtype, key: str, where: str, zeros: MutableMapping[str, int] | None = None
) -> np.ndarray:
    """The values of a tensor, rounded to `dtype`; where that is theirs already, the values themselves.

    Args:
        values: the tensor's values.
        dtype: the dtype that they get.
        key: the tensor's name.
        where: names its source in errors.
        zeros: takes, under the name, the number of values that are zero only because they are too small for `dtype`.

    Raises:
        UserError: finite values are too large for `dtype`.
    """
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        rounded = values.astype(dtype)
    if dtype.itemsize < values.dtype.itemsize:
        lost = np.isinf(rounded)
        lost &= np.isfinite(values)
        if lost.any():
            raise UserError(
                f"{where} holds {key} with {int(lost.sum())} of {lost.size} values beyond the largest of {dtype}, "
                f"{float(ml_dtypes.finfo(dtype).max):.6g}: export it as float32 or bfloat16"
            )
        small = int(np.count_nonzero(values)) - int(np.count_nonzero(rounded))
        if zeros is not None and small:
            zeros[key] = small
    return rounded
