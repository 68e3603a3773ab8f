"""Every setting of a run, as frozen dataclasses that refuse contradictions when they are built."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from stellarbyte.architecture import ByteConfig, RopeScaling
from stellarbyte.files import check_path
from stellarbyte_jax.batch_stages import Growth, Stage, merged
from stellarbyte_jax.bounds import MOST_DEVICES, check_seed, check_whole, require
from stellarbyte_jax.checkpoint_config import CheckpointConfig
from stellarbyte_jax.data_config import DataConfig, SourceConfig
from stellarbyte_jax.distill_config import DistillConfig
from stellarbyte_jax.distributed_config import DistributedConfig
from stellarbyte_jax.lora_config import LoRAConfig
from stellarbyte_jax.optimizer_config import OptimizerConfig
from stellarbyte_jax.prune_config import PruneConfig
from stellarbyte_jax.training_config import TrainingConfig

__all__ = [
    "ByteConfig",
    "CheckpointConfig",
    "DataConfig",
    "DistillConfig",
    "DistributedConfig",
    "LoRAConfig",
    "MeshConfig",
    "OptimizerConfig",
    "PruneConfig",
    "RopeScaling",
    "RunConfig",
    "SourceConfig",
    "TrainingConfig",
]


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one axis may be -1, for all that the others leave."""

    data: int = -1
    """Number of whole copies of the model, each with its own rows of a batch."""

    fsdp: int = 1
    """Number of devices that share out parameters and optimizer state among them, each with its own rows of a batch."""

    expert: int = 1
    """Number of devices that share out the experts, each with its own rows of a batch; tokens travel to their experts
    and back.
    """

    context: int = 1
    """Number of devices that share out the tokens of each row."""

    tensor: int = 1
    """Number of devices that share out the matrices of a layer and the vocabulary."""

    slices: int = 1
    """Number of slices of the devices, with a slow network between them. `data` goes across slices, or `fsdp` where
    `data` is not divisible by them.
    """

    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Other mesh axes for single logical axes of the table in sharding.py, such as {hidden: [fsdp, expert]}; [] leaves
    a logical axis whole.
    """

    @property
    def sizes(self) -> dict[str, int]:
        """Mesh axis to devices along it; those that talk most come last, and get neighbours."""
        return {name: getattr(self, name) for name in ("data", "fsdp", "expert", "context", "tensor")}

    def __post_init__(self) -> None:
        sizes = self.sizes
        for name, size in sizes.items():
            if size != -1:
                check_whole(f"mesh.{name}", size, 1, MOST_DEVICES, ", or -1 to infer it")
        require(
            list(sizes.values()).count(-1) <= 1, "mesh", sizes, "has more than one -1: only one axis can be inferred"
        )
        check_whole("mesh.slices", self.slices, 1, MOST_DEVICES)
        for axis, rule in self.rules.items():
            require(len(set(rule)) == len(rule), f"mesh.rules.{axis}", list(rule), "names an axis twice")
            for name in rule:
                require(name in sizes, f"mesh.rules.{axis}", name, f"is no mesh axis: use {', '.join(sizes)}")


@dataclass(frozen=True)
class RunConfig:
    """A whole pretraining run: enough, with the sources' text, to do it again."""

    output_dir: str
    """The folder of the run: config, metrics and checkpoints. If it holds a run already, that run goes on."""

    model: ByteConfig
    """The architecture: a mapping, or the path of a model's YAML file. It may be left out where init_from names a run.
    """

    data: DataConfig
    """What the model reads: sources, the tokenizer, token shards, and the length of a row."""

    training: TrainingConfig
    """How long and how much at once: steps, batch, dtype, attention kernel, rematerialisation and validation."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How the weights follow the gradients: the optimizer, its learning rate's schedule, decay and clipping."""

    mesh: MeshConfig = field(default_factory=MeshConfig)
    """How many devices lie along each axis; one axis may be -1, for all devices that the others leave."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When the run is saved, and which checkpoints are kept."""

    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """How several processes that train one run find each other; one process needs nothing here."""

    seed: int = 0
    """The seed of first weights, order of samples and dropout, from 0 to 4294967295."""

    init_from: str | None = None
    """The folder of a run whose newest weights this run starts from, or of a Hugging Face model, of which `pretrain`
    makes a run first; null to start from fresh weights.
    """

    lora: LoRAConfig | None = None
    """Adapters that are trained alone, on the frozen weights of init_from; null to train all weights."""

    def __post_init__(self) -> None:
        check_path(self.output_dir, "output_dir", bucket=True)
        if self.init_from is not None:
            check_path(self.init_from, "init_from", bucket=True)
        check_seed("seed", self.seed)
        distill = self.training.distill
        others = {"init_from": self.init_from, "training.distill.teacher": None if distill is None else distill.teacher}
        for name, folder in others.items():
            require(
                folder is None or os.path.normpath(folder) != os.path.normpath(self.output_dir),
                name,
                folder,
                "is output_dir as well: a run that is there goes on by itself, and a new one needs a folder of its own",
            )
        if self.lora is not None:
            self.lora.layer_numbers(self.model.num_hidden_layers)
            require(
                self.init_from is not None,
                "init_from",
                self.init_from,
                "must name the run whose weights lora trains adapters on",
            )
        require(
            self.data.sequence_length <= self.model.max_position_embeddings,
            "data.sequence_length",
            self.data.sequence_length,
            f"is longer than model.max_position_embeddings {self.model.max_position_embeddings}",
        )
        self._length_growth.check("training", "sequence_length", "data.sequence_length", self.training.max_steps)
        require(
            self.training.initial_sequence_length is None or self.data.kind == "text",
            "training.initial_sequence_length",
            self.training.initial_sequence_length,
            "cuts rows, and with data.kind chat rows hold whole samples: leave it out",
        )
        self.optimizer.check_steps(self.training.max_steps)
        self._check_positions()
        self._check_grid()
        if self.training.prune is not None:
            require(
                self.lora is None,
                "training.prune",
                "cuts",
                "weights that are trained, and lora keeps them as they are: prune the base first, or leave lora out",
            )
            grid = self.training.quantize != "none"
            self.training.prune.check_model(self.model, self.training.quantize_group_size if grid else None)
        self._check_guards()
        if self.checkpoint.keep_best is not None:
            self._check_best_can_be_told(self.checkpoint.keep_best)
        self.model.check_xpos_range(self.training.dtype)
        require(
            not self.model.attention_dropout or self.training.attention_kernel not in ("cudnn", "splash"),
            "training.attention_kernel",
            self.training.attention_kernel,
            f"has no dropout, but model.attention_dropout is {self.model.attention_dropout}: use auto, reference or "
            "chunked, or set model.attention_dropout to 0",
        )

    @property
    def _length_growth(self) -> Growth:
        training = self.training
        return Growth(
            training.initial_sequence_length, self.data.sequence_length, training.sequence_length_warmup_steps
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The sizes of the run's batches, one after the other."""
        return merged(self.training.batch_growth, self._length_growth)

    def _check_positions(self) -> None:
        """Refuses to shift positions beyond those of the model, and to hold a zeta that is not trained."""
        shift, coef, model = self.training.position_shift, self.training.xpos_regularization_coef, self.model
        room = model.max_position_embeddings - self.data.sequence_length
        require(
            shift <= room,
            "training.position_shift",
            shift,
            f"and data.sequence_length {self.data.sequence_length} together are more than "
            f"model.max_position_embeddings {model.max_position_embeddings}: shift by {room} at most",
        )
        require(
            not shift or model.position_embedding != "none",
            "training.position_shift",
            shift,
            "shifts nothing, because model.position_embedding is none: leave it out",
        )
        require(
            not coef or (model.xpos_learnable and self.lora is None),
            "training.xpos_regularization_coef",
            coef,
            "is for a zeta that is trained: set model.xpos_learnable and train all weights, or leave this out",
        )

    def _check_grid(self) -> None:
        """Refuses to train on a grid what has none: weights below adapters, and inputs that groups do not divide."""
        training, model = self.training, self.model
        if training.quantize == "none":
            return
        require(
            self.lora is None,
            "training.quantize",
            training.quantize,
            "trains all weights for their export, and lora keeps them as they are: leave one of the two out",
        )
        size = training.quantize_group_size
        if size is None:
            return
        for layer, inputs in _linear_inputs(model).items():
            divisor = max(part for part in range(1, min(size, inputs) + 1) if inputs % part == 0)
            require(
                inputs % size == 0,
                "training.quantize_group_size",
                size,
                f"does not divide the {inputs} inputs of {layer}: choose a divisor, such as {divisor}, or null",
            )

    def _check_guards(self) -> None:
        """Refuses guards of a run that lack what they go by: regular checkpoints, or validations."""
        training, checkpoint = self.training, self.checkpoint
        require(
            training.on_not_finite != "rollback" or checkpoint.save_steps is not None,
            "training.on_not_finite",
            "rollback",
            "goes back to a checkpoint of checkpoint.save_steps, which is null: set that",
        )
        checkpoint.check_metric(training.eval_tasks)
        early = training.early_stopping_patience is not None
        require(
            not early or self.data.validation_fraction > 0,
            "training.early_stopping_patience",
            training.early_stopping_patience,
            "needs a validation split to judge by, but data.validation_fraction is 0: set it, or leave this out",
        )
        require(
            early or checkpoint.keep_best is not None or checkpoint.metric_for_best_model == "validation_loss",
            "checkpoint.metric_for_best_model",
            checkpoint.metric_for_best_model,
            "is for keep_best and training.early_stopping_patience: set one of them, or leave this out",
        )

    def _check_best_can_be_told(self, keep_best: int) -> None:
        """Refuses to keep the best checkpoints of a run that is not validated wherever it is saved."""
        save_steps, eval_steps = self.checkpoint.save_steps, self.training.eval_steps
        require(
            self.data.validation_fraction > 0,
            "checkpoint.keep_best",
            keep_best,
            "needs a validation split to judge by, but data.validation_fraction is 0: set it, or leave keep_best out",
        )
        require(
            save_steps is not None and save_steps % eval_steps == 0,
            "checkpoint.keep_best",
            keep_best,
            "needs a validation wherever the run is saved: make checkpoint.save_steps (now "
            f"{'null' if save_steps is None else save_steps}) a multiple of training.eval_steps {eval_steps}",
        )


def _linear_inputs(model: ByteConfig) -> dict[str, int]:
    """Name of a linear layer -> the number of its input channels; names stand for all that have as many."""
    assert model.head_dim is not None
    inputs = {"q_proj": model.hidden_size, "o_proj": model.num_attention_heads * model.head_dim}
    if model.pruned_heads is not None:
        # An export leaves these heads out, and so groups must not reach over the borders of heads.
        inputs["a head of o_proj"] = model.head_dim
    if not model.num_experts:
        sizes = dict.fromkeys(model.intermediate_sizes)
        return inputs | {"down_proj" if len(sizes) == 1 else f"a down_proj of {size}": size for size in sizes}
    assert model.moe_intermediate_size is not None
    return inputs | {"an expert's down_proj": model.moe_intermediate_size}
