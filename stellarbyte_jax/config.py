"""Every setting of a run, as frozen dataclasses that refuse contradictions when they are built."""

import math
from dataclasses import dataclass, field
from typing import Literal

from stellarbyte_jax.errors import UserError

# Largest finite value of each compute dtype; kept here so that checking a config imports no array library.
_LARGEST_FINITE = {"float32": 3.4028235e38, "bfloat16": 3.3895314e38, "float16": 65504.0}

# XPos decays pair 0 the fastest: zeta_0 = 0.4 / 1.4 (Sun et al. 2022, arXiv:2212.10554).
XPOS_SMALLEST_ZETA = 0.4 / 1.4


@dataclass(frozen=True)
class ByteConfig:
    """Architecture of a StellarByte decoder, in Hugging Face's words.

    `num_key_value_heads` defaults to `num_attention_heads`, `head_dim` to `hidden_size / num_attention_heads`.

    Raises:
        UserError: a field is out of range, or two fields contradict each other.
    """

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: Literal["silu", "gelu", "gelu_pytorch_tanh", "relu"] = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    position_embedding: Literal["xpos", "rope"] = "xpos"
    rope_theta: float = 10000.0
    xpos_scale_base: float = 512.0
    xpos_learnable: bool = False
    bos_token_id: int = 0
    eos_token_id: int = 1
    pad_token_id: int = 2

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "must be at least 1")
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim is None:
            _require(
                self.hidden_size % self.num_attention_heads == 0,
                "hidden_size",
                self.hidden_size,
                f"is not divisible by num_attention_heads {self.num_attention_heads}: "
                "choose a multiple, or set head_dim",
            )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        assert self.num_key_value_heads is not None and self.head_dim is not None
        _require(
            self.num_key_value_heads > 0 and self.num_attention_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            self.num_key_value_heads,
            f"must divide num_attention_heads {self.num_attention_heads}",
        )
        _require(
            self.head_dim > 0 and self.head_dim % 2 == 0,
            "head_dim",
            self.head_dim,
            "must be even and at least 2, for rotary positions turn pairs of channels",
        )
        for name in ("max_position_embeddings", "rms_norm_eps", "initializer_range", "rope_theta", "xpos_scale_base"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "must be greater than 0")
        token_ids = {name: getattr(self, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        for name, token_id in token_ids.items():
            _require(
                0 <= token_id < self.vocab_size,
                name,
                token_id,
                f"must be inside the vocabulary: 0 to vocab_size - 1 = {self.vocab_size - 1}",
            )
        _require(
            len(set(token_ids.values())) == 3,
            "pad_token_id",
            self.pad_token_id,
            f"must differ from bos_token_id {self.bos_token_id} and eos_token_id {self.eos_token_id}, "
            "as they from each other",
        )
        _require(
            self.position_embedding == "xpos" or not self.xpos_learnable,
            "xpos_learnable",
            self.xpos_learnable,
            f"needs position_embedding xpos, not {self.position_embedding}",
        )
        self.check_xpos_range("float32")

    def check_xpos_range(self, dtype: str) -> None:
        """Refuse XPos decays that overflow `dtype` somewhere in the context.

        A score multiplies a query's and a key's factor, each at most zeta_0^(-r / base) with r =
        max_position_embeddings / 2; the product of two such, met by a pair that the causal mask hides, must be finite.

        Raises:
            UserError: naming the smallest `xpos_scale_base` that fits.
        """
        if self.position_embedding != "xpos":
            return
        decay = self.max_position_embeddings * math.log(1 / XPOS_SMALLEST_ZETA)
        smallest_base = math.ceil(decay / math.log(_LARGEST_FINITE[dtype]))
        _require(
            self.xpos_scale_base >= smallest_base,
            "xpos_scale_base",
            self.xpos_scale_base,
            f"lets XPos leave the range of {dtype} within max_position_embeddings "
            f"{self.max_position_embeddings}: use at least {smallest_base}",
        )


@dataclass(frozen=True)
class SourceConfig:
    """One source of text: a file, a folder (searched whole) or a glob.

    .txt .md .py hold one document a file; .jsonl .json .csv .parquet hold records, of which `fields` are put into
    `template` ("{title}\\n{text}"), or joined by blank lines where there is no template. Each may end in .gz or .zst.
    """

    path: str
    fields: tuple[str, ...] = ("text",)
    template: str | None = None

    def __post_init__(self) -> None:
        _require(bool(self.fields), "fields", list(self.fields), "must name at least one field of the records")


@dataclass(frozen=True)
class DataConfig:
    """What the model reads: sources of text, the tokenizer's folder, the folder of the token shards made of both."""

    sources: tuple[SourceConfig, ...]
    tokenizer: str
    shards: str
    sequence_length: int = 1024
    validation_fraction: float = 0.01
    on_bad_record: Literal["fail", "skip"] = "fail"
    tokens_per_shard: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        _require(bool(self.sources), "data.sources", list(self.sources), "must name at least one source of text")
        _require(self.sequence_length > 1, "data.sequence_length", self.sequence_length, "must be at least 2")
        _require(self.tokens_per_shard > 0, "data.tokens_per_shard", self.tokens_per_shard, "must be at least 1")
        _require(
            0 <= self.validation_fraction < 1,
            "data.validation_fraction",
            self.validation_fraction,
            "must be at least 0 and less than 1",
        )


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how much at once: `batch_size` is rows a step over all devices, before accumulation splits it."""

    max_steps: int
    batch_size: int
    gradient_accumulation_steps: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    eval_steps: int = 100
    eval_batches: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "eval_steps"):
            _require(getattr(self, name) > 0, f"training.{name}", getattr(self, name), "must be at least 1")
        if self.eval_batches is not None:
            _require(self.eval_batches > 0, "training.eval_batches", self.eval_batches, "must be at least 1 or null")
        _require(
            self.batch_size % self.gradient_accumulation_steps == 0,
            "training.batch_size",
            self.batch_size,
            f"is not divisible by gradient_accumulation_steps {self.gradient_accumulation_steps}",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up, cosine decay to `min_learning_rate_ratio` of the peak, and global-norm clipping."""

    learning_rate: float = 3e-4
    min_learning_rate_ratio: float = 0.1
    warmup_steps: int = 100
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "adam_epsilon", "max_grad_norm"):
            _require(getattr(self, name) > 0, f"optimizer.{name}", getattr(self, name), "must be greater than 0")
        for name in ("warmup_steps", "weight_decay"):
            _require(getattr(self, name) >= 0, f"optimizer.{name}", getattr(self, name), "must be at least 0")
        for name in ("adam_beta1", "adam_beta2"):
            _require(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "must be in [0, 1)")
        _require(
            0 <= self.min_learning_rate_ratio <= 1,
            "optimizer.min_learning_rate_ratio",
            self.min_learning_rate_ratio,
            "must be in [0, 1]",
        )


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one axis may be -1, for all that the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            _require(size > 0 or size == -1, f"mesh.{name}", size, "must be at least 1, or -1 to infer it")
        _require(
            list(sizes.values()).count(-1) <= 1, "mesh", sizes, "has more than one -1: only one axis can be inferred"
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save (always after the last step, too) and how many of the newest checkpoints to keep."""

    save_steps: int = 100
    save_total_limit: int = 2

    def __post_init__(self) -> None:
        for name in ("save_steps", "save_total_limit"):
            _require(getattr(self, name) > 0, f"checkpoint.{name}", getattr(self, name), "must be at least 1")


@dataclass(frozen=True)
class RunConfig:
    """A whole pretraining run: enough, with the sources' text, to do it again."""

    output_dir: str
    model: ByteConfig
    data: DataConfig
    training: TrainingConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        _require(
            self.data.sequence_length <= self.model.max_position_embeddings,
            "data.sequence_length",
            self.data.sequence_length,
            f"is longer than model.max_position_embeddings {self.model.max_position_embeddings}",
        )
        _require(
            self.optimizer.warmup_steps <= self.training.max_steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"is more than training.max_steps {self.training.max_steps}",
        )
        self.model.check_xpos_range(self.training.dtype)


def _require(holds: bool, name: str, value: object, complaint: str) -> None:
    if not holds:
        raise UserError(f"{name} {value} {complaint}")
