"""What a report is about: the fields of a model, and its tensors by name, however it was named and wherever it lies."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stellarbyte.architecture import ByteConfig
from stellarbyte.places import Place

Kind = Literal["run", "model", "config"]


@dataclass(frozen=True)
class StoredTensor:
    """A parameter: its shape in the model, and its dtype and bytes in files.

    Attributes:
        shape: PyTorch's, whatever the files hold: of codes, the shape of the weights that they stand for.
        dtype: in safetensors' words; of codes of few bits, such as I4.
        nbytes: with scales and the like; 0 of a model that is not stored.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Training:
    """How a run trains, as far as a report needs it.

    Attributes:
        run: the run's config, a RunConfig of the JAX wing.
        rows, length: the rows that are computed at once, and their tokens. dtype: that of the computation.
        optimizer: its name.
    """

    run: Any
    rows: int
    length: int
    dtype: str
    optimizer: str


@dataclass(frozen=True)
class Subject:
    """A model that is to be reported on.

    Attributes:
        kind, path: as the report has them.
        model_type: config.json's.
        fields: the fields of config.json or of ByteConfig.
        config: the architecture in our words; None of a family that is none of ours, or of a model that does not fit.
        tensors: name -> parameter, each once, by PyTorch's names.
        facts: what it is, for people: name -> text.
        training: of a run, or the config of one.
        adapters: whether only adapters are trained.
        misfit: of a family that has a place here: a sentence why this model has no config all the same.
        buffers: bytes in the files that are no parameters.
        remarks: sentences that a reader must know.
    """

    kind: Kind
    path: Place
    model_type: str
    fields: Mapping[str, Any]
    config: ByteConfig | None
    tensors: Mapping[str, StoredTensor]
    facts: dict[str, str] = field(default_factory=dict)
    training: Training | None = None
    adapters: bool = False
    misfit: str | None = None
    buffers: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def is_stored(self) -> bool:
        """Whether there are weights, and not only a config."""
        return any(tensor.nbytes for tensor in self.tensors.values())
