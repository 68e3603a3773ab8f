"""What a family is: the fields of its config.json, the switches that it has here, and the names of its tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Rule:
    """A switch that has one value in every model of a family.

    Attributes:
        field: the field of ByteConfig.
        value: its value in the family.
        does: what the family's class does for all that the field says, to go on a sentence that the class begins.
    """

    field: str
    value: Any
    does: str


# What all families here have in common: each is a Llama with one or the other switch.
LIKE_LLAMA = (
    Rule("position_embedding", "rope", "turns queries and keys by plain RoPE"),
    Rule("residual", "pre_norm", "normalises before each branch"),
    Rule("parallel_residual", False, "computes the feed-forward after the attention"),
)
NO_QK_NORM = Rule("qk_norm", False, "does not normalise queries and keys")
QK_NORM = Rule("qk_norm", True, "normalises queries and keys")
NO_WINDOW = Rule("sliding_window", None, "lets a token see all earlier ones")
NO_BIAS = Rule("attention_bias", False, "has no biases")
DENSE = (Rule("num_experts", 0, "has no experts"),)
SPARSE = (Rule("num_shared_experts", 0, "has no shared experts"),)
NORMALISED = Rule("norm_topk_prob", True, "rescales the weights of a token's experts to a sum of 1")


@dataclass(frozen=True)
class Experts:
    """How a family names its experts, in files and in config.json.

    In files each expert has three matrices. Here, as in a model of Transformers 5, a layer's experts are two tensors.

    Attributes:
        router, gate, up, down: the names of a layer's tensors; {expert} stands for the number of an expert.
        count: the field of config.json that is num_experts here.
        width: the field of config.json that is moe_intermediate_size here.
    """

    router: str
    gate: str
    up: str
    down: str
    count: str
    width: str


@dataclass(frozen=True)
class Family:
    """An architecture of Transformers' own.

    Attributes:
        model_type: its name in config.json, by which it is recognised.
        architecture: the class that loads it.
        rules: the switches that have one value in all of its models.
        fields: the fields of ByteConfig that its config.json has beside those that every family has.
        absent: what its class takes for a field that config.json leaves out, where ByteConfig takes another value.
        neutral: fields of its config.json that have no counterpart here -> the value with which they change nothing.
        window: how config.json says that layers have a window: never; by sliding_window alone; or by
            use_sliding_window, in all layers at once or in each by itself.
        heads_divide_width: whether its config wants hidden_size to be a multiple of the number of query heads.
        experts: how it names its experts; None without.
        zeros: the ends of the names of tensors that it lacks, and that count as 0 here.
        not_exported: why no model here can be exported as one of the family; None if some can.
    """

    model_type: str
    architecture: str
    rules: tuple[Rule, ...]
    fields: tuple[str, ...] = ()
    absent: Mapping[str, Any] = field(default_factory=dict)
    neutral: Mapping[str, Any] = field(default_factory=dict)
    window: Literal["never", "sliding_window", "use_sliding_window", "layer_types"] = "never"
    heads_divide_width: bool = False
    experts: Experts | None = None
    zeros: tuple[str, ...] = ()
    not_exported: Rule | None = None

    @property
    def fixed(self) -> dict[str, Any]:
        """Field of ByteConfig -> its value in every model of the family."""
        return {rule.field: rule.value for rule in self.rules}
