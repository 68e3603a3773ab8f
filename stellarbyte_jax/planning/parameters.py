"""Counts a model's parameters and their optimizer's state without making them: in all, and what one chip holds."""

import math
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from stellarbyte_jax.checkpoints.adapter_trees import split_adapters
from stellarbyte_jax.config import ByteConfig, LoRAConfig, OptimizerConfig, RunConfig
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.planning.program import layout_of
from stellarbyte_jax.planning.tiles import padded_bytes
from stellarbyte_jax.sharding import param_shardings
from stellarbyte_jax.training.optimizer import run_optimizer
from stellarbyte_jax.training.optimizer_state import Axes, opt_state_axes
from stellarbyte_jax.training.param_traits import trained_params
from stellarbyte_jax.training.state import abstract_model
from stellarbyte_jax.training.teacher import find_teacher

# A name in a parameter's path -> the part of the model that it belongs to; the first that fits counts.
_PARTS = (
    *(("lora_A", "adapters"), ("lora_B", "adapters"), ("embed_tokens", "embeddings"), ("self_attn", "attention")),
    *(("experts", "experts"), ("shared_experts", "experts"), ("gate", "router"), ("mlp", "feed-forward")),
    ("lm_head", "head"),
)


@dataclass(frozen=True)
class Parameters:
    """Bytes of the float32 parameters that one chip holds, placed by the table in sharding.py.

    trained, frozen: all parameters, in two kinds. teacher: those of the model that the run learns from. optimizer: the
    optimizer's state beside the trained ones, but for its counters. layers: the layers' parameters of both kinds.
    dense_layers: the layers' parameters without experts. embedding: a trained embedding that is not the head as well.
    """

    trained: int
    frozen: int
    teacher: int
    optimizer: int
    layers: int
    dense_layers: int
    embedding: int

    @property
    def experts(self) -> int:
        """Bytes of the experts' parameters."""
        return self.layers - self.dense_layers

    @property
    def total(self) -> int:
        """Bytes of all parameters of the run's own model."""
        return self.trained + self.frozen


def counter_of(config: RunConfig) -> "ParameterCounter":
    """The counter of a run's parameters; raises UserError if an adapter's module or the teacher is not there."""
    found = find_teacher(config)
    return ParameterCounter(config.model, config.lora, None if found is None else found[1])


class ParameterCounter:
    """Counts a model's parameters, all of them and those of one chip.

    abstract: the parameters as an abstract NNX state.
    total: the number of parameters of the whole model, adapters included, and without the zeros that stand for what is
        pruned.
    teacher: the config of the model that the run learns from.
    active: the number without the experts that a token is not sent to.

    Raises:
        UserError: `lora` names a module that the model does not have.
    """

    def __init__(self, model: ByteConfig, lora: LoRAConfig | None = None, teacher: ByteConfig | None = None) -> None:
        self.teacher = teacher
        self._opt_states: dict[OptimizerConfig, list[tuple[jax.ShapeDtypeStruct, Axes]]] = {}
        execution = Execution(platform="cpu", attention_kernel="reference")
        self.abstract = abstract_model(model, execution, lora)[1]
        self._abstract_teacher = None if teacher is None else abstract_model(teacher, execution)[1]
        self._zeros = _zeros(model)
        held = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.abstract))
        self.total = held - sum(self._zeros.values())
        idle_experts = model.num_experts - model.num_experts_per_tok if model.num_experts else 0
        an_expert = 3 * model.hidden_size * (model.moe_intermediate_size or 0)
        self.active = self.total - model.num_hidden_layers * idle_experts * an_expert

    def parts(self) -> dict[str, int]:
        """The number of parameters in each part of the model that it has."""
        parts: dict[str, int] = {}
        for path, array in jax.tree_util.tree_leaves_with_path(_arrays(self.abstract)):
            names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
            part = next((part for name, part in _PARTS if name in names), "norms and gains")
            parts[part] = parts.get(part, -self._zeros.get(part, 0)) + math.prod(array.shape)
        return {part: parts[part] for part in dict.fromkeys([*dict(_PARTS).values(), *parts]) if part in parts}

    def local(self, config: RunConfig, sizes: dict[str, int], platform: str) -> Parameters:
        """The parameters of one chip on a mesh of `sizes`.

        Raises:
            UserError: a parameter's axis is not divisible by its mesh axes, or `optimizer.learning_rate_pattern` has an
                entry that fits no parameter.
        """
        layout = layout_of(config, sizes)

        def bytes_of(array: Any, sharding: Any) -> int:
            return padded_bytes(sharding.shard_shape(array.shape), array.dtype, platform == "tpu", free=True)

        def all_bytes(abstract: nnx.State) -> Any:
            return jax.tree.map(bytes_of, _arrays(abstract), param_shardings(abstract, layout))

        local = all_bytes(self.abstract)
        teacher = 0 if self._abstract_teacher is None else _total(all_bytes(self._abstract_teacher))
        frozen, trained = split_adapters(local)
        if config.lora is None:
            frozen, trained = {}, frozen
        layers = local["model"]["layers"]
        experts = _total(layers["mlp"].get("experts", {}))
        optimizer = sum(bytes_of(array, layout.sharding(*axes.names)) for array, axes in self._opt_state(config))
        apart = config.lora is None and not config.model.tie_word_embeddings
        return Parameters(
            trained=_total(trained),
            frozen=_total(frozen),
            teacher=teacher,
            optimizer=optimizer,
            layers=_total(layers),
            dense_layers=_total(layers) - experts,
            embedding=_total(local["model"]["embed_tokens"]) if apart else 0,
        )

    def _opt_state(self, config: RunConfig) -> list[tuple[jax.ShapeDtypeStruct, Axes]]:
        """The optimizer's arrays and their axes, without its counters; kept, because they depend on no mesh."""
        if config.optimizer not in self._opt_states:
            optimizer = run_optimizer(config, self.abstract)
            base, adapters = split_adapters(_arrays(self.abstract))
            state = jax.eval_shape(optimizer.init, base if config.lora is None else adapters)
            axes = opt_state_axes(optimizer, trained_params(self.abstract, config.lora))
            pairs = zip(jax.tree.leaves(state), jax.tree.leaves(axes), strict=True)
            self._opt_states[config.optimizer] = [(array, axes) for array, axes in pairs if array.shape]
        return self._opt_states[config.optimizer]


def _arrays(abstract: nnx.State) -> Any:
    return nnx.to_pure_dict(abstract, extract_fn=lambda variable: variable.get_value())


def _zeros(model: ByteConfig) -> dict[str, int]:
    """Part of the model -> how many of its numbers are zeros, in the place of pruned heads and channels."""
    D, H, K = model.hidden_size, model.head_dim or 0, model.num_key_value_heads or 0
    group, bias = model.num_attention_heads // K, int(model.attention_bias)
    attention = 0
    for gone in model.pruned_heads or ():
        whole_groups = sum(set(range(k * group, (k + 1) * group)) <= set(gone) for k in range(K))
        attention += H * (len(gone) * (2 * D + bias) + whole_groups * 2 * (D + bias))
    widest = max(model.intermediate_sizes)
    channels = 0 if model.num_experts else sum(widest - width for width in model.intermediate_sizes)
    return {"attention": attention, "feed-forward": 3 * D * channels}


def _total(tree: Any) -> int:
    return sum(jax.tree.leaves(tree))
