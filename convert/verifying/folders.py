"""Opens a model's Hugging Face folder for `verify`: its config, its tensors, and the model that PyTorch makes of it."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert import config as hf_config
from convert import given_weights, shards
from convert.families.family import Family
from convert.families.tensors import from_stock
from convert.given_folder import check_links
from convert.verifying.rows import Sizes
from convert.verifying.side import FolderSide
from convert.weights import DTYPES, LazyTensor
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError, shown
from stellarbyte.file_manifest import check_files
from stellarbyte.files import sha256_of_json
from stellarbyte_jax.config_file import to_dict

Used = Callable[[int], None]


@dataclass(frozen=True)
class Folder:
    """A model's Hugging Face folder.

    fields: the content of config.json. config: the same in our words, if the architecture can be said in them.
    tensors: by the names that the class's parameters have, which are ours too. family: the family of a stock model that
    has a place here. tied_apart: what is wrong with a head that is stored beside the embedding that it is tied to.
    """

    path: Path
    fields: Mapping[str, Any]
    config: ByteConfig | None
    tensors: Mapping[str, LazyTensor]
    family: Family | None = None
    tied_apart: str | None = None

    @property
    def dtype(self) -> str:
        """The dtype of the weights. Raises UserError unless it is one of `DTYPES`."""
        dtype = self.fields.get("dtype", self.fields.get("torch_dtype"))
        if not isinstance(dtype, str) or dtype not in DTYPES:
            where = self.path / hf_config.CONFIG
            raise UserError(f"{where} names the dtype {shown(dtype)}, expected one of {', '.join(DTYPES)}")
        return dtype

    def side(self, used: Used) -> FolderSide:
        """The model in PyTorch. Raises UserError."""
        from convert.verifying.torch_side import TorchSide

        if self.sizes.layers > len(self.tensors):
            where = self.path / hf_config.CONFIG
            raise UserError(f"{where}: num_hidden_layers {self.sizes.layers} is more than there are tensors")
        # Two files' worth may be in memory, and one of the embedding and the layers is where it computes.
        file = max(path.stat().st_size for path in self.path.glob("*.safetensors"))
        parts: Counter[str] = Counter()
        for key, tensor in self.tensors.items():
            parts[".".join(key.split(".")[:3])] += 4 * math.prod(tensor.shape)
        return TorchSide(self.path, self.tensors, max(0, 2 * file - max(parts.values(), default=0)), used)

    @property
    def config_hash(self) -> str:
        """The hash of the config: of all fields, whatever their order in the file."""
        return sha256_of_json(self.fields if self.config is None else to_dict(self.config))

    @property
    def model_type(self) -> str:
        """The architecture, in Transformers' words."""
        return str(self.fields["model_type"])

    def loaded_fields(self) -> dict[str, Any]:
        """The fields of config.json as Transformers reads them, with its defaults. Raises UserError if it cannot."""
        from convert.verifying.torch_side import read_fields

        return read_fields(self.path)

    @property
    def sizes(self) -> Sizes:
        """What the rows to compare depend on. Raises UserError if config.json does not say it."""
        if self.config is not None:
            return sizes_of(self.config)
        fields = self.loaded_fields()
        names = ("vocab_size", "num_hidden_layers", "hidden_size", "max_position_embeddings")
        numbers = [fields.get(name) for name in names]
        for name, number in zip(names, numbers, strict=True):
            if not isinstance(number, int):
                raise UserError(f"{self.path / hf_config.CONFIG} has {name} {shown(number)}, expected a number")
        vocab_size, layers, hidden_size, context = (int(number) for number in numbers if isinstance(number, int))
        special = [self.token_id(f"{name}_token_id") for name in ("bos", "eos", "pad")]
        special_ids = frozenset(number for number in special if number is not None)
        return Sizes(vocab_size, layers, hidden_size, context, context, fields.get("sliding_window"), special_ids)

    def token_id(self, name: str) -> int | None:
        """The id of bos, eos or pad in config.json; the first of a list."""
        value = getattr(self.config, name) if self.config is not None else self.fields.get(name)
        value = value[0] if isinstance(value, list) and value else value
        return value if isinstance(value, int) else None


def open_folder(path: Path) -> Folder:
    """A folder's config and tensors, whose values are read later.

    Raises:
        UserError: there is no such folder, a file is broken, or Transformers has no such model of its own.
    """
    check_links(path)
    check_files(path)
    fields = hf_config.read_fields(path)
    tensors = dict(shards.read(path))
    family = hf_config.family_of(path)
    if family is None and fields.get("model_type") != hf_config.MODEL_TYPE:
        _check_is_known(fields, path)
        return Folder(path, fields, None, tensors)
    try:
        config = hf_config.read_hf(path)
    except UserError:
        if family is None:
            raise
        return Folder(path, fields, None, tensors)  # what it computes can be compared all the same
    try:
        tensors = given_weights.one_of_tied(tensors, config, str(path))
    except UserError as error:
        return Folder(path, fields, config, tensors, family, tied_apart=str(error))
    if family is not None:
        with suppress(UserError):  # of keys that are wrong the comparison tells
            tensors = from_stock(tensors, config, family, str(path))
    return Folder(path, fields, config, tensors, family)


def sizes_of(config: ByteConfig) -> Sizes:
    """The sizes of a model of ours."""
    return Sizes(
        config.vocab_size,
        config.num_hidden_layers,
        config.hidden_size,
        config.max_position_embeddings,
        config.context_length,
        config.sliding_window,
        frozenset((config.bos_token_id, config.eos_token_id, config.pad_token_id)),
    )


def _check_is_known(fields: Mapping[str, Any], path: Path) -> None:
    """Refuses a model whose code is not in Transformers: what came with the folder may be a stranger's."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"{path} holds a model of type {shown(model_type)}, which Transformers has no causal language model for, "
            "and code that comes with a folder is never run: give a folder of a type that Transformers has"
        )
