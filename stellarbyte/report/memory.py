"""The memory of a model, in bytes: at rest, in training, with a cache, and the chips that it fits."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingMemory:
    """The bytes of a training step on one device at its fullest moment, under one policy of remat.

    Attributes:
        remat: one of stellarbyte_jax's policies: none, dots, dots_without_batch, save_attention, full, offload.
        rows, length: the batch. dtype: that of the computation.
        weights: the parameters, in float32. optimizer: its state.
        activations: what the layers keep for the backward pass. working: what one layer and the loss work with beside.
    """

    remat: str
    rows: int
    length: int
    dtype: str
    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working


@dataclass(frozen=True)
class CacheMemory:
    """The bytes of keys and values for one row of tokens, in one dtype.

    Attributes:
        dtype: float32, bfloat16 or int8.
        token: the bytes that one more token takes where no window or budget is full.
        lengths: (tokens of context, bytes), ascending; a window holds no more than its tokens.
        budget: the slots of each head, where a budget was named; None without.
    """

    dtype: str
    token: int
    lengths: tuple[tuple[int, int], ...]
    budget: int | None = None


@dataclass(frozen=True)
class ChipFit:
    """What one chip, or one GPU, has room for.

    Attributes:
        chip: its name. bytes: the memory that a program may use.
        training_rows: remat policy -> the largest batch of rows of the training length that fits; 0 if none does.
        inference_rows: dtype of the weights -> the most rows with a full context that fit beside them; 0 if none does.
    """

    chip: str
    bytes: int
    training_rows: dict[str, int]
    inference_rows: dict[str, int]


@dataclass(frozen=True)
class Memory:
    """The memory of a model.

    Attributes:
        stored: the bytes of its tensors as they are stored, each once; None of a bare config.
        stored_dtypes: dtype as stored, in safetensors' words -> bytes.
        weights: dtype (float32, bfloat16, int8, int4) -> the bytes of the weights in it.
        optimizer: the name of the optimizer that `training` counts.
        training: one for each policy of remat; empty where the family's layers are not known.
        cache: one for each dtype; empty where the heads are not known.
        chips: what fits, from the smallest chip to the largest.
    """

    stored: int | None
    stored_dtypes: dict[str, int]
    weights: dict[str, int]
    optimizer: str
    training: tuple[TrainingMemory, ...]
    cache: tuple[CacheMemory, ...]
    chips: tuple[ChipFit, ...]
