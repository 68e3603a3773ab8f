"""What numbers float32 holds, in which weights, gradients and their optimizers are kept."""

SMALLEST, LARGEST = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127


def holds(value: float) -> bool:
    """Whether float32 has the number neither as infinity nor, but for zero itself, as zero."""
    return value == 0 or SMALLEST <= abs(value) <= LARGEST
