"""The memory of a model, in bytes: at rest, in training, with a cache, and the chips that it fits."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stellarbyte.chips import CHIPS
from stellarbyte.kv_cache.settings import KVBudget
from stellarbyte.report.architecture import Architecture, Weight
from stellarbyte.report.flops import LENGTHS, TRAINING_LENGTH
from stellarbyte.report.parameters import Parameters
from stellarbyte.report.subject import Subject

DTYPES = ("float32", "bfloat16", "int8", "int4")
CACHE_DTYPES = ("float32", "bfloat16", "int8")

_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
# AdamW keeps two numbers for each that is trained.
_MOMENTS = 2
# safetensors' words for dtypes that have others everywhere else
_STORED = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Of quantised matrices: bits of a code, and inputs that share a scale of two bytes; None: all of a row.
_CODES: dict[str, tuple[int, int | None]] = {"int8": (8, None), "int4": (4, 128)}
_SCALE_BYTES = 2
_QUANTISED = ("attention_q", "attention_k", "attention_v", "attention_qkv", "attention_o", "feed_forward")
_WITH_EXPERTS = (*_QUANTISED, "experts", "shared_experts")
# The scale of an int8 key or value is a float32.
_CACHE_SCALE_BYTES = {"float32": 0, "bfloat16": 0, "int8": 4}


@dataclass(frozen=True)
class TrainingMemory:
    """The bytes of a training step on one device at its fullest moment, under one policy of remat.

    Attributes:
        remat: one of stellarbyte_jax's policies: none, dots, dots_without_batch, save_attention, full, offload.
        rows, length: the batch. dtype: that of the computation.
        weights: the parameters, in float32. optimizer: its state.
        activations: what the layers keep for the backward pass. working: what one layer and the loss work with beside.
        moment: the loss, when there are no gradients yet; the layers' backward pass, when the embedding has none; or
            the optimizer's update.
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
    moment: str

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working


@dataclass(frozen=True)
class CacheMemory:
    """The bytes of keys and values for one row of tokens, in one dtype.

    Attributes:
        dtype: float32, bfloat16 or int8; int8 has a float32 scale for each key and value of each head.
        token: the bytes that one more token takes where no window or budget is full.
        lengths: (tokens of context, bytes), ascending; a window holds no more than its tokens.
        budget: the slots of each head at the longest of these, where a budget was named; None without.
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
class Foreseen:
    """What the planner of the JAX wing foresees of training on one device.

    Attributes:
        training: one for each policy of remat.
        rows: chip -> remat policy -> the largest batch that fits.
        recomputed: remat policy -> FLOPs of a token that are computed a second time.
        remarks: sentences about what is left out.
    """

    training: tuple[TrainingMemory, ...] = ()
    rows: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    recomputed: dict[str, float] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Memory:
    """The memory of a model.

    Attributes:
        stored: the bytes of its tensors as they are stored, each once, with what files hold beside them; None of a
            model that is not stored.
        stored_dtypes: dtype as stored, of codes in safetensors' words -> bytes.
        weights: dtype (float32, bfloat16, int8, int4) -> the bytes of the weights in it. int8 and int4 are of the
            layers' matrices, with one bfloat16 scale a row or for 128 inputs; the rest is bfloat16 then.
        optimizer: the name of the optimizer that `state` and `training` count.
        state: what training holds from step to step, in float32: weights, gradients, optimizer -> bytes.
        training: one for each policy of remat; empty where the family's training is not known.
        cache: one for each dtype; empty where the heads are not known.
        chips: what fits, from the smallest chip to the largest.
    """

    stored: int | None
    stored_dtypes: dict[str, int]
    weights: dict[str, int]
    optimizer: str
    state: dict[str, int]
    training: tuple[TrainingMemory, ...]
    cache: tuple[CacheMemory, ...]
    chips: tuple[ChipFit, ...]


def count_memory(
    subject: Subject,
    architecture: Architecture,
    parameters: Parameters,
    foreseen: Foreseen,
    budget: KVBudget | None = None,
) -> Memory:
    """The memory of a model. budget: that of a cache; None for one of all tokens."""
    stored: dict[str, int] = defaultdict(int)
    for tensor in subject.tensors.values():
        stored[tensor.dtype] += tensor.nbytes
    weights = weight_bytes(architecture, parameters.total)
    cache = tuple(_cache(architecture, dtype, budget) for dtype in CACHE_DTYPES) if _attends(architecture) else ()
    trained = subject.training
    state = {"weights": 4 * parameters.total, "gradients": 4 * parameters.trained}
    if foreseen.training:  # the optimizer's own arrays
        state["optimizer"] = foreseen.training[0].optimizer
    elif trained is None or trained.optimizer == "adamw":
        state["optimizer"] = 4 * _MOMENTS * parameters.trained
    return Memory(
        stored=sum(stored.values()) + subject.buffers if subject.is_stored else None,
        stored_dtypes={_STORED.get(dtype, dtype): nbytes for dtype, nbytes in sorted(stored.items()) if nbytes},
        weights=weights,
        optimizer="adamw" if trained is None else trained.optimizer,
        state=state,
        training=foreseen.training,
        cache=cache,
        chips=tuple(
            ChipFit(
                chip.name,
                int(chip.hbm_bytes),
                foreseen.rows.get(chip.name, {}),
                {dtype: _rows(architecture, cache, weights[dtype], dtype, chip.hbm_bytes) for dtype in DTYPES}
                if cache
                else {},
            )
            for chip in sorted(CHIPS.values(), key=lambda chip: chip.hbm_bytes)
        ),
    )


def weight_bytes(architecture: Architecture, total: int) -> dict[str, int]:
    """Dtype -> bytes of the weights of a model with `total` parameters."""
    found = {dtype: _BYTES[dtype] * total for dtype in ("float32", "bfloat16")}
    matrices = [(weight, len(group.layers)) for group in architecture.groups for weight in _matrices(group.weights)]
    rest = total - sum(count * weight.count for weight, count in matrices)
    for dtype, (bits, group) in _CODES.items():
        codes = sum(count * weight.copies * _quantised(weight, bits, group) for weight, count in matrices)
        found[dtype] = 2 * rest + codes
    return found


def _matrices(weights: Iterable[Weight]) -> list[Weight]:
    return [w for w in weights if w.part in _WITH_EXPERTS and len(w.shape) > 1 and not w.name.endswith("bias")]


def _quantised(weight: Weight, bits: int, group: int | None) -> int:
    *_, inputs = weight.shape
    rows = math.prod(weight.shape) // inputs
    scales = 1 if group is None else math.ceil(inputs / group)
    return rows * (math.ceil(inputs * bits / 8) + scales * _SCALE_BYTES)


def _attends(architecture: Architecture) -> bool:
    return any(group.attention is not None for group in architecture.groups)


def _cache(architecture: Architecture, dtype: str, budget: KVBudget | None) -> CacheMemory:
    context = architecture.context or TRAINING_LENGTH
    lengths = sorted({at for at in LENGTHS if at < context} | {context})
    return CacheMemory(
        dtype=dtype,
        token=cache_bytes(architecture, dtype, 1),
        lengths=tuple((at, cache_bytes(architecture, dtype, at, budget)) for at in lengths),
        budget=None if budget is None else budget.of(context),
    )


def cache_bytes(architecture: Architecture, dtype: str, tokens: int, budget: KVBudget | None = None) -> int:
    """The bytes of one row's keys and values behind so many tokens; what a policy remembers beside them is left out."""
    total = 0
    for group in architecture.groups:
        attention = group.attention
        if attention is None:
            continue
        held = min(tokens, attention.window or tokens, tokens if budget is None else budget.of(tokens))
        heads, channels = attention.key_value_heads, attention.head_dim + attention.value_dim
        if attention.latent is not None:
            heads, channels = 1, attention.latent
        a_token = heads * (_BYTES[dtype] * channels + 2 * _CACHE_SCALE_BYTES[dtype])
        total += len(group.layers) * a_token * held
    return total


def _rows(architecture: Architecture, cache: Sequence[CacheMemory], weights: int, dtype: str, available: float) -> int:
    """The most rows with a full context that fit beside the weights."""
    computed = "float32" if dtype == "float32" else "bfloat16"
    context, held = next(found for found in cache if found.dtype == computed).lengths[-1]
    return max(0, int((available - weights) // (held + prefill_bytes(architecture, computed, context))))


def prefill_bytes(architecture: Architecture, dtype: str, tokens: int) -> int:
    """The bytes of one row of a prompt at the fullest moment, beside weights and cache: a layer's work, and logits."""
    return 4 * (architecture.vocab_size or 0) + tokens * _BYTES[dtype] * _working(architecture)


def _working(architecture: Architecture) -> int:
    """The numbers of one token that a forward pass holds at once, within a feed-forward network, as PyTorch runs it.

    They are the embeddings, the residual stream before and after attention, the branch and the network's input, and of
    its inside what the gate, its activation's product and the other half hold.
    """
    widest = 0
    for group in architecture.groups:
        network = group.feed_forward
        if network is not None:
            at_work = network.experts_per_token or 1
            widest = max(widest, (2 + network.gated) * (network.width * at_work + network.shared_width))
    return 5 * (architecture.hidden_size or 0) + widest
