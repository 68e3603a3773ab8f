"""The settings of a quantisation."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from stellarbyte.errors import UserError, shown
from stellarbyte_torch.quantization.grid import Grid

Method = Literal["rtn", "gptq", "awq", "smoothquant", "int8-dynamic"]
BITS = (2, 3, 4, 8)

# Methods that also round activations when the model runs: 8 bits, a scale for each row of weights and for each token.
_WITH_ACTIVATIONS = ("smoothquant", "int8-dynamic")


@dataclass(frozen=True)
class QuantizationSettings:
    """How a model is quantised. Raises UserError if a value is impossible or two contradict each other."""

    method: Method = "gptq"
    """How codes are chosen: rtn rounds each weight to the nearest; gptq lets later columns make up for the errors of
    earlier ones (Frantar et al. 2022, arXiv:2210.17323); awq widens the channels that see large activations before it
    rounds (Lin et al. 2023, arXiv:2306.00978); smoothquant evens out weights and activations, and rounds both to int8
    (Xiao et al. 2022, arXiv:2211.10438); int8-dynamic rounds both as they are.
    """

    bits: int = 4
    """Bits of a weight: 2, 3, 4 or 8. smoothquant and int8-dynamic have 8."""

    group_size: int | None = 128
    """Number of neighbouring input channels that share a scale; null for one scale a row."""

    symmetric: bool = True
    """Whether the grid is centred on 0. Otherwise each group has a zero point, which fits skewed groups better."""

    samples: int = 128
    """Number of rows of tokens to calibrate on."""

    sequence_length: int = 512
    """Tokens of a calibration row, as far as the model's context allows."""

    damping: float = 0.01
    """For gptq: the share of the Hessian's mean diagonal that is added to its diagonal."""

    seed: int = 0
    """Seed of the choice of calibration rows."""

    include_head: bool = False
    """Whether the output head is quantised as well; it must not be tied to the embedding."""

    include_embeddings: bool = False
    """Whether the embedding is quantised as well, by plain rounding; the head must not be tied to it."""

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UserError(f"method {shown(self.method)} must be one of {', '.join(get_args(Method))}")
        if self.bits not in BITS:
            raise UserError(f"bits {shown(self.bits)} must be one of {', '.join(map(str, BITS))}")
        if self.rounds_activations:
            for name, value in (("bits", 8), ("group_size", None), ("symmetric", True)):
                if getattr(self, name) != value:
                    raise UserError(
                        f"{name} {shown(getattr(self, name))} contradicts method {self.method}, whose kernels take "
                        f"{name} {shown(value)}: leave {name} out"
                    )
        if self.group_size is not None and not 8 <= self.group_size <= 2**20:
            raise UserError(
                f"group_size {shown(self.group_size)} must be from 8 to {2**20}, or null for one scale a row"
            )
        for name, most in (("samples", 2**20), ("sequence_length", 2**20)):
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name} {shown(getattr(self, name))} must be from 1 to {most}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed {shown(self.seed)} must be from 0 to 2^63 - 1")
        if not 0 < self.damping <= 1:
            raise UserError(f"damping {shown(self.damping)} must be above 0 and at most 1")

    @classmethod
    def of(cls, method: Method, **fields: Any) -> "QuantizationSettings":
        """The settings of a method; fields that are not given have the method's own defaults."""
        own: dict[str, Any] = {"bits": 8, "group_size": None, "symmetric": True} if method in _WITH_ACTIVATIONS else {}
        return cls(method=method, **{**own, **fields})

    @property
    def rounds_activations(self) -> bool:
        """Whether the quantised model rounds the inputs of its layers to int8, by a scale for each token."""
        return self.method in _WITH_ACTIVATIONS

    @property
    def words(self) -> str:
        """The settings in words, such as "gptq, 4 bits, groups of 128"."""
        per = "one scale a row" if self.group_size is None else f"groups of {self.group_size}"
        return f"{self.method}, {self.bits} bits, {per}{'' if self.symmetric else ' with zero points'}"

    @property
    def grid(self) -> Grid:
        """The grid of each group of weights."""
        return Grid(self.bits, self.group_size, self.symmetric)
