"""The range of float32, the dtype of weights, gradients and optimizer states."""

SMALLEST, LARGEST = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127


def holds(value: float) -> bool:
    """Whether float32 holds the number as a normal number or zero, without overflow or underflow."""
    return value == 0 or SMALLEST <= abs(value) <= LARGEST
