"""Records an adapter's base in a file beside PEFT's own, which stock PEFT ignores, and compares two bases."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stellarbyte.errors import UserError, in_full
from stellarbyte.files import write_json
from stellarbyte.reading import MIB, read_json_object

BASE_FILE = "stellarbyte_base.json"


class AdapterWarning(UserWarning):
    """A user should know this about an adapter and its base, although nothing is known to be wrong."""


# Fields of a config.json that do not change what a base computes, or that may differ where an adapter is used: its
# storage, its special tokens, the length of its texts, and dropout in training.
_PASSED_OVER = {
    *("_name_or_path", "architectures", "auto_map", "chunk_size_feed_forward", "dtype", "torch_dtype", "id2label"),
    *("label2id", "is_encoder_decoder", "output_attentions", "output_hidden_states", "output_router_logits"),
    *("problem_type", "return_dict", "use_cache", "pretraining_tp", "quantization_config", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "max_position_embeddings", "n_positions"),
    *("initializer_range", "drop_path_rate"),
}
_PASSED_OVER_PARTS = ("dropout", "pdrop", "loss_coef", "version", "hash", "sha256")

# Rounding to bfloat16 moves a weight by less than 1/128 of it; embeddings are rarely quantised.
_ROUNDING = 1 / 64


@dataclass(frozen=True)
class AdapterBase:
    """The fields of a base's config that affect what it computes, and a few values of its embeddings if known.

    The values are the first of every fourth row among the first 64 embeddings. Two models that were trained separately
    differ in them; a model that was only rounded or resized does not.
    """

    config: dict[str, Any]
    embeddings: tuple[float, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any], embeddings: Sequence[float] = ()) -> "AdapterBase":
        """The base with the fields of a config.json and with `sampled` embeddings."""
        kept = {name: _plain(value) for name, value in config.items() if not _is_passed_over(name)}
        return cls(kept, tuple(embeddings))

    def write(self, folder: Path) -> None:
        """Writes the file beside PEFT's. Raises UserError if it cannot be written."""
        write_json(folder / BASE_FILE, {"config": self.config, "embeddings": list(self.embeddings)}, sort_keys=True)

    @classmethod
    def read(cls, folder: Path) -> "AdapterBase | None":
        """The base that an adapter's folder describes in the file, or None without one. Raises UserError if broken."""
        path = folder / BASE_FILE
        if not path.exists():
            return None
        fields = read_json_object(path, MIB)
        config, embeddings = fields.get("config"), fields.get("embeddings")
        are_numbers = isinstance(embeddings, list) and all(type(value) is float for value in embeddings)
        if not isinstance(config, dict) or not isinstance(embeddings, list) or not are_numbers:
            raise UserError(f"{path} holds no config and embeddings of a base: save the adapter again")
        return cls(config, tuple(embeddings))

    def check(self, other: "AdapterBase", where: str) -> None:
        """Raises UserError if `other`, the present model, computes something else than this base."""
        differing = [name for name in self.config if name in other.config and self.config[name] != other.config[name]]
        if differing:
            name = "model_type" if "model_type" in differing else differing[0]
            raise UserError(
                f"{where} is for another base: its {name} is {in_full(self.config[name])}, and this model's is "
                f"{in_full(other.config[name])}; load it on the model it was trained on"
            )

    def has_other_weights(self, other: "AdapterBase") -> bool:
        """Whether both bases' embeddings are known, and differ by more than rounding."""
        pairs = list(zip(self.embeddings, other.embeddings, strict=False))
        largest = max((abs(mine) for mine, _ in pairs), default=0.0)
        return any(not abs(mine - theirs) <= _ROUNDING * largest for mine, theirs in pairs)


def check_adapter(folder: Path, fields: Mapping[str, Any], here: AdapterBase, own_name: str = "") -> None:
    """Compares the base that an adapter's folder describes with the present model `here`, whose name is `own_name`.

    If the folder lacks our file, the `fields` of its adapter_config.json are used. Raises UserError if the adapter is
    for a model that computes something else. Warns with AdapterWarning if the folder does not say enough, or if the
    model's weights are others.
    """
    where = f"the adapter in {folder}"
    known = AdapterBase.read(folder)
    if known is not None:
        known.check(here, where)
        if known.has_other_weights(here):
            _warn(f"{where} was trained on other weights than this model has: what it learnt may not fit them")
        return
    name, revision = fields.get("base_model_name_or_path"), fields.get("revision")
    if not name:
        _warn(f"{where} does not say what base it is for: only the shapes of its tensors could be checked")
    elif isinstance(name, str) and "\0" not in name and (Path(name) / "config.json").is_file():
        AdapterBase.of(read_json_object(Path(name) / "config.json", 16 * MIB)).check(here, where)
    elif name != own_name:
        _warn(
            f"{where} says that it is for {in_full(name)}, which is not here, and this model is "
            f"{own_name or 'nameless'}: whether they are the same could not be checked"
        )
    if revision not in (None, "main"):
        _warn(f"{where} is for revision {in_full(revision)} of its base, which could not be checked")


def tell_warnings(program: str) -> None:
    """Makes every AdapterWarning a line of the program's own on stderr."""
    show = warnings.showwarning

    def tell(message: Any, category: Any, *rest: Any, **kwargs: Any) -> None:
        if issubclass(category, AdapterWarning):
            print(f"{program}: note: {message}", file=sys.stderr)
        else:
            show(message, category, *rest, **kwargs)

    warnings.showwarning = tell


def sampled(values: Sequence[Sequence[float]]) -> list[float]:
    """The values of embeddings [V, D], or of their first 64 rows, that AdapterBase keeps."""
    return [float(row[0]) for row in values[:64:4]]


def _warn(sentence: str) -> None:
    warnings.warn(sentence, AdapterWarning, stacklevel=5)


def _is_passed_over(name: str) -> bool:
    return name.startswith("_") or name in _PASSED_OVER or any(part in name for part in _PASSED_OVER_PARTS)


def _plain(value: Any) -> Any:
    """The value in the form that JSON gives back, so that what is read equals what was written."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
