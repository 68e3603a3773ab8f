"""The report of a model: counted facts, and measured ones where they were asked for."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from stellarbyte.figures import finite_json
from stellarbyte.report.architecture import Architecture
from stellarbyte.report.flops import Flops
from stellarbyte.report.measurements import CurvePoints, Measured, Weights
from stellarbyte.report.memory import Memory
from stellarbyte.report.parameters import Parameters
from stellarbyte.report.subject import Kind


@dataclass(frozen=True)
class Request:
    """What is to be measured of the models of one command.

    Attributes:
        latency: whether to measure speed.
        data: the path of a text, to measure losses, attention and heads on.
        dtype: that in which both are computed; auto is float32 of a run, and of a folder that of its weights.
        step: the step of a run whose batch is computed again.
        weights: whether to look at the numbers of all weights; None does so if they are not too many.
    """

    latency: bool = False
    data: str | None = None
    dtype: str = "auto"
    step: int | None = None
    weights: bool | None = None


@dataclass(frozen=True)
class Report:
    """All that is known of one model.

    Attributes:
        name: a short name, which no other model of the command has.
        kind: run (of pretraining), model (a Hugging Face folder) or config (nothing is trained yet).
        path: what the user named.
        facts: what it is, in a few words: name -> text, in the order to show.
        flops: None where the family's heads or widths are not known.
        weights, curves, measured: None or empty where they were not asked for, or there are none.
        remarks: sentences that a reader must know, such as what is not counted.
    """

    name: str
    kind: Kind
    path: str
    facts: dict[str, str]
    architecture: Architecture
    parameters: Parameters
    memory: Memory
    flops: Flops | None
    weights: Weights | None = None
    measured: Measured = dataclasses.field(default_factory=Measured)
    curves: dict[str, CurvePoints] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON; a float that is not finite becomes null, for which JSON has no number."""
        plain = finite_json(dataclasses.asdict(self))
        assert isinstance(plain, dict)
        for entry, training in zip(plain["memory"]["training"], self.memory.training, strict=True):
            entry["total"] = training.total
        return plain
