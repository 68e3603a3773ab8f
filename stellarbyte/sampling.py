"""The settings for drawing the next token, in Hugging Face's words; they are the same in JAX and in PyTorch."""

from dataclasses import dataclass

from stellarbyte import float32
from stellarbyte.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """The steps from logits to a draw, in the order of Hugging Face's generate.

    First the repetition penalty (Keskar et al. 2019, arXiv:1909.05858) is applied to the tokens of the prompt and the
    answer so far. Then temperature 0 takes the likeliest token; otherwise the temperature, top-k, top-p (Holtzman et
    al. 2020, arXiv:1904.09751) and min-p (Nguyen et al. 2024, arXiv:2407.01082) are applied.

    Raises:
        UserError: a value is out of range, or one for random draws is given with temperature 0.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and float32.holds(self.temperature)):
            raise UserError(
                f"temperature {self.temperature} must be at least 0 (0 is greedy) and a number that float32 holds"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k {self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p} must be greater than 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UserError(f"min_p {self.min_p} must be at least 0 and at most 1")
        if not (self.repetition_penalty > 0 and float32.holds(self.repetition_penalty)):
            raise UserError(
                f"repetition_penalty {self.repetition_penalty} must be greater than 0 (1 is none) and a number that "
                "float32 holds"
            )
        for name in ("top_k", "top_p", "min_p"):
            if self.temperature == 0 and getattr(self, name) is not None:
                raise UserError(
                    f"{name} {getattr(self, name)} has no effect at temperature 0, which takes the likeliest token: "
                    "set a temperature above 0, or leave it out"
                )

    @property
    def penalises(self) -> bool:
        """Whether a draw depends on the tokens before it beyond their logits."""
        return self.repetition_penalty != 1
