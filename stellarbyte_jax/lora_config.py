"""LoRAConfig: which adapters are trained beside frozen weights, in the words of PEFT's LoraConfig."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stellarbyte.errors import UserError, in_full
from stellarbyte.layer_ranges import layer_numbers
from stellarbyte.lora_values import MAX_RANK
from stellarbyte_jax.bounds import check_number

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoRAConfig:
    """Adapters x A B · scaling beside linear layers x W (Hu et al. 2021, arXiv:2106.09685), by PEFT's names."""

    target_modules: str | tuple[str, ...]
    """The linear modules of a layer that get an adapter, by name or end of name, such as [q_proj, mlp.up_proj]; or
    all-linear, for all of them.
    """

    r: int = 8
    """Rank of the adapters."""

    lora_alpha: float = 8
    """The adapters' scaling times r, or times the root of r with use_rslora."""

    lora_dropout: float = 0.0
    """Probability with which training drops an input channel of an adapter; the frozen weights get all channels."""

    use_rslora: bool = False
    """Whether the scaling is lora_alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732) instead of lora_alpha / r."""

    layers: str | None = None
    """The layers that get adapters, such as "0-3,8" with both ends included; null for all."""

    rank_pattern: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Ranks of single modules instead of r, by a module's name or end of name, such as {q_proj: 16}."""

    alpha_pattern: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Values of single modules instead of lora_alpha, by a module's name or end of name, such as {q_proj: 32}."""

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, str) and self.target_modules != ALL_LINEAR:
            raise UserError(
                f"lora.target_modules {self.target_modules} must be a list of modules such as [{self.target_modules}], "
                f"or {ALL_LINEAR}"
            )
        if not self.target_modules:
            raise UserError("lora.target_modules [] names no module: name one at least, or take all-linear")
        for name, rank in {"r": self.r, **{f"rank_pattern.{key}": r for key, r in self.rank_pattern.items()}}.items():
            if not 1 <= rank <= MAX_RANK:
                raise UserError(f"lora.{name} {in_full(rank)} must be at least 1 and at most {MAX_RANK}")
        alphas = {"lora_alpha": self.lora_alpha, **{f"alpha_pattern.{k}": a for k, a in self.alpha_pattern.items()}}
        for name, alpha in alphas.items():
            check_number(f"lora.{name}", alpha)
            if alpha == 0:
                raise UserError(f"lora.{name} 0 would leave nothing of the adapter: choose r or twice r, for example")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"lora.lora_dropout {self.lora_dropout} must be at least 0 and less than 1")
        if self.layers is not None:
            layer_numbers(self.layers, "lora.layers")

    def adapts(self, module: str) -> bool:
        """Whether a layer's linear module of this dotted name gets an adapter."""
        return self.target_modules == ALL_LINEAR or any(ends_with(module, name) for name in self.target_modules)

    def rank(self, module: str) -> int:
        """R of the adapter beside a module."""
        return next((r for name, r in self.rank_pattern.items() if ends_with(module, name)), self.r)

    def scaling(self, module: str) -> float:
        """What x A B is multiplied with beside a module."""
        alpha = next((a for name, a in self.alpha_pattern.items() if ends_with(module, name)), self.lora_alpha)
        return alpha / (self.rank(module) ** 0.5 if self.use_rslora else self.rank(module))

    def layer_numbers(self, num_hidden_layers: int) -> list[int]:
        """The layers that have adapters, ascending; raises UserError: the model has not so many."""
        if self.layers is None:
            return list(range(num_hidden_layers))
        numbers = layer_numbers(self.layers, "lora.layers")
        if numbers[-1] >= num_hidden_layers:
            raise UserError(
                f"lora.layers {self.layers} names layer {numbers[-1]}, but the model has layers 0 to "
                f"{num_hidden_layers - 1}: choose from these"
            )
        return numbers


def ends_with(module: str, name: str) -> bool:
    """Whether `name` is the module's dotted name or the last words of it."""
    return module == name or module.endswith(f".{name}")
