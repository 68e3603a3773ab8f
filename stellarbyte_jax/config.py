"""Every setting of a run, as frozen dataclasses that refuse contradictions when they are built."""

import os
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stellarbyte.architecture import ByteConfig, RopeScaling
from stellarbyte.chat.formats import RecordFormat
from stellarbyte.errors import UserError
from stellarbyte.files import check_path
from stellarbyte_jax.bounds import MOST_DEVICES, MOST_TOKENS_PER_SHARD, check_number, check_seed, check_whole
from stellarbyte_jax.distributed_config import DistributedConfig
from stellarbyte_jax.lora_config import LoRAConfig

__all__ = [
    "ByteConfig",
    "CheckpointConfig",
    "DataConfig",
    "DistributedConfig",
    "LoRAConfig",
    "MeshConfig",
    "OptimizerConfig",
    "RopeScaling",
    "RunConfig",
    "SourceConfig",
    "TrainingConfig",
]


@dataclass(frozen=True)
class SourceConfig:
    r"""One source of text: a file, a folder (searched whole) or a glob.

    .txt .md .py hold one document a file; .jsonl .ndjson .json .csv .tsv .parquet hold records, of which `fields` are
    put into `template` ("{title}\n{text}", where \n is a line end, \t a tab and \\ a backslash), or joined by blank
    lines where there is no template. `fields` are by default those that the template names, or text. Each file may end
    in .gz .zst .xz or .bz2.

    format: of data.kind chat, the fields of its records; auto tells from the fields that each record has.
    """

    path: str
    fields: tuple[str, ...] = None  # type: ignore[assignment]  # never None once it is made
    template: str | None = None
    format: RecordFormat = "auto"

    def __post_init__(self) -> None:
        if self.fields is None:
            object.__setattr__(self, "fields", _template_fields(self.template or "") or ("text",))
        _require(bool(self.fields), "fields", list(self.fields), "must name at least one field of the records")


def _template_fields(template: str) -> tuple[str, ...]:
    """The fields that a template names; none of one that cannot be read, which documents.RecordText refuses."""
    try:
        return tuple(dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(template) if name))
    except ValueError:
        return ()


@dataclass(frozen=True)
class DataConfig:
    """What the model reads: sources, the tokenizer's folder, the folder of the token shards made of both.

    kind: text is one stream, cut into rows; chat is samples, several a row but each whole, made of records of messages,
        prompt and completion, instruction and output (alpaca), or plain text, as their fields say.

    For chat alone:

    chat_template: a Jinja file, or "stellarbyte" for the one that `stellarbyte tokenizer train` writes; the tokenizer's
        own by default.
    loss_on: assistant trains on assistant turns only, all on every token. Plain text is trained on whole in both cases.
    on_too_long: of a sample of more than sequence_length tokens, truncate keeps the first ones; drop leaves it out;
        split goes on in further samples, which do not see what came before. In each case what has no trained token left
        is left out, and all of it is counted.
    """

    sources: tuple[SourceConfig, ...]
    tokenizer: str
    shards: str
    sequence_length: int = 1024
    validation_fraction: float = 0.01
    on_bad_record: Literal["fail", "skip"] = "fail"
    tokens_per_shard: int = 64 * 1024 * 1024
    kind: Literal["text", "chat"] = "text"
    chat_template: str | None = None
    loss_on: Literal["assistant", "all"] = "assistant"
    on_too_long: Literal["truncate", "drop", "split"] = "truncate"

    def __post_init__(self) -> None:
        for name in ("tokenizer", "shards"):
            check_path(getattr(self, name), f"data.{name}")
        _require(bool(self.sources), "data.sources", list(self.sources), "must name at least one source of text")
        check_whole("data.sequence_length", self.sequence_length, 2)
        check_whole("data.tokens_per_shard", self.tokens_per_shard, 1, MOST_TOKENS_PER_SHARD)
        _require(
            0 <= self.validation_fraction < 1,
            "data.validation_fraction",
            self.validation_fraction,
            "must be at least 0 and less than 1",
        )
        if self.kind == "text":
            for name, default in (("chat_template", None), ("loss_on", "assistant"), ("on_too_long", "truncate")):
                value = getattr(self, name)
                _require(value == default, f"data.{name}", value, "is for data.kind chat: set that, or leave this out")
            for source in self.sources:
                plain = source.format == "auto"
                _require(plain, "data.sources", source.path, "has a format, which is for data.kind chat: take it out")
        else:
            for source in self.sources:
                plain = source.fields == ("text",) and source.template is None
                complaint = "has fields or a template, which are for data.kind text: take them out"
                _require(plain, "data.sources", source.path, complaint)


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how much at once: `batch_size` is rows a step over all devices, before accumulation splits it.

    remat: what a layer works out again in the backward pass instead of keeping it, see model/remat.py; auto is the
        fastest of these that fits the chips at hand, by the planner.
    attention_block_size: the largest block of queries and keys that splash works on at a time; the largest of it, its
        half, its quarter … down to 128 that divides a device's part of a row is taken.
    """

    max_steps: int
    batch_size: int
    gradient_accumulation_steps: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention_kernel: Literal["auto", "reference", "chunked", "cudnn", "splash"] = "auto"
    attention_block_size: int = 512
    remat: Literal["auto", "none", "full", "dots", "dots_without_batch", "save_attention", "offload"] = "none"
    eval_steps: int = 100
    eval_batches: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "eval_steps"):
            check_whole(f"training.{name}", getattr(self, name), 1)
        if self.eval_batches is not None:
            check_whole("training.eval_batches", self.eval_batches, 1, otherwise=" or null")
        _require(
            self.batch_size % self.gradient_accumulation_steps == 0,
            "training.batch_size",
            self.batch_size,
            f"is not divisible by gradient_accumulation_steps {self.gradient_accumulation_steps}",
        )
        size = self.attention_block_size
        power_of_two = 128 <= size <= 2**16 and size & (size - 1) == 0
        expected = "must be a power of two of at least 128 and at most 65536"
        _require(power_of_two, "training.attention_block_size", size, expected)
        _require(
            size == TrainingConfig.attention_block_size or self.attention_kernel in ("auto", "splash"),
            "training.attention_block_size",
            size,
            f"is for attention_kernel splash: set that instead of {self.attention_kernel}, or leave this out",
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
            check_number(f"optimizer.{name}", getattr(self, name), above=0)
        check_whole("optimizer.warmup_steps", self.warmup_steps, 0)
        check_number("optimizer.weight_decay", self.weight_decay, least=0)
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
    """Devices along each mesh axis; one axis may be -1, for all that the others leave. sharding.py says what each does.

    slices: of the devices, with a slow network between them; data goes across them, or fsdp where data cannot.
    rules: where logical axes of sharding.py's table lie instead, such as {hidden: [fsdp, expert]}, or [] for nowhere.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    slices: int = 1
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Mesh axis to devices along it; those that talk most come last, and get neighbours."""
        return {name: getattr(self, name) for name in ("data", "fsdp", "expert", "context", "tensor")}

    def __post_init__(self) -> None:
        sizes = self.sizes
        for name, size in sizes.items():
            if size != -1:
                check_whole(f"mesh.{name}", size, 1, MOST_DEVICES, ", or -1 to infer it")
        _require(
            list(sizes.values()).count(-1) <= 1, "mesh", sizes, "has more than one -1: only one axis can be inferred"
        )
        check_whole("mesh.slices", self.slices, 1, MOST_DEVICES)
        for axis, rule in self.rules.items():
            _require(len(set(rule)) == len(rule), f"mesh.rules.{axis}", list(rule), "names an axis twice")
            for name in rule:
                _require(name in sizes, f"mesh.rules.{axis}", name, f"is no mesh axis: use {', '.join(sizes)}")


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save (always after the last step, too) and how many of the newest checkpoints to keep."""

    save_steps: int = 100
    save_total_limit: int = 2

    def __post_init__(self) -> None:
        for name in ("save_steps", "save_total_limit"):
            check_whole(f"checkpoint.{name}", getattr(self, name), 1)


@dataclass(frozen=True)
class RunConfig:
    """A whole pretraining run: enough, with the sources' text, to do it again.

    init_from: the folder of a run whose newest weights this one starts from; its model is this one's.
    lora: train adapters alone, on the weights of `init_from`, which stay as they are and are needed on.
    """

    output_dir: str
    model: ByteConfig
    data: DataConfig
    training: TrainingConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    seed: int = 0
    init_from: str | None = None
    lora: LoRAConfig | None = None

    def __post_init__(self) -> None:
        check_path(self.output_dir, "output_dir")
        if self.init_from is not None:
            check_path(self.init_from, "init_from")
        check_seed("seed", self.seed)
        _require(
            self.init_from is None or os.path.normpath(self.init_from) != os.path.normpath(self.output_dir),
            "init_from",
            self.init_from,
            "is output_dir as well: a run that is there goes on by itself, and a new one needs a folder of its own",
        )
        if self.lora is not None:
            self.lora.layer_numbers(self.model.num_hidden_layers)
            _require(
                self.init_from is not None,
                "init_from",
                self.init_from,
                "must name the run whose weights lora trains adapters on",
            )
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
        _require(
            not self.model.attention_dropout or self.training.attention_kernel not in ("cudnn", "splash"),
            "training.attention_kernel",
            self.training.attention_kernel,
            f"has no dropout, but model.attention_dropout is {self.model.attention_dropout}: use auto, reference or "
            "chunked, or set model.attention_dropout to 0",
        )


def _require(holds: bool, name: str, value: object, complaint: str) -> None:
    if not holds:
        raise UserError(f"{name} {value} {complaint}")
