"""DistillConfig: the teacher that a run learns from beside its data."""

from dataclasses import dataclass

from stellarbyte.files import check_path
from stellarbyte_jax.bounds import check_number, check_whole, require


@dataclass(frozen=True)
class DistillConfig:
    """Distillation: a run learns the probabilities of a trained model of the same vocabulary (Hinton et al. 2015).

    Training makes (1 - weight) · cross-entropy + weight · temperature² · KL(teacher ‖ student) small
    (arXiv:1503.02531), where both give probabilities at that temperature.
    """

    teacher: str
    """The folder of a run whose weights teach and stay as they are, or of a Hugging Face model, of which `pretrain`
    makes a run first. Its tokenizer must be the run's own.
    """

    teacher_step: int | None = None
    """The teacher's checkpoint; null for its newest at this run's first step."""

    weight: float = 0.5
    """Share of the teacher in what training makes small, more than 0 and at most 1; the rest is the share of the data's
    own tokens.
    """

    temperature: float = 1.0
    """What logits of both models are divided by before they become probabilities, from 0.01 to 100; above 1 the
    teacher's small probabilities count for more.
    """

    def __post_init__(self) -> None:
        check_path(self.teacher, "training.distill.teacher", bucket=True)
        if self.teacher_step is not None:
            check_whole("training.distill.teacher_step", self.teacher_step, 0, otherwise=" or null")
        check_number("training.distill.weight", self.weight)
        require(0 < self.weight <= 1, "training.distill.weight", self.weight, "must be in (0, 1], such as 0.5")
        # Beyond these bounds float32 has nothing left of the difference between two models.
        in_bounds = 0.01 <= self.temperature <= 100
        require(in_bounds, "training.distill.temperature", self.temperature, "must be at least 0.01 and at most 100")
