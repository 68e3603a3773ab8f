"""A folder's model with the weights of one block in memory at a time, for ours and for Llama-like families."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from stellarbyte.errors import UserError, shown
from stellarbyte.quantised import check_not_quantised
from stellarbyte.safetensors_header import read_header
from stellarbyte_torch.model_folder import MISTAKES, first_line, read_config, some, weight_files
from stellarbyte_torch.quantization.experts import ROUTER, Hear, are_experts, computed
from stellarbyte_torch.quantization.folder_names import expert_parts, on_disk
from stellarbyte_torch.quantization.grid import rounded_rows
from stellarbyte_torch.quantization.scaling_table import FAMILIES

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_ZETA = "model.rotary_emb.zeta"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class FolderModel:
    """The model in a folder; its layers compute in float32.

    config: Transformers' config. depth: the number of decoder layers. is_tied: whether the head is the embedding.

    Raises:
        UserError: there is no such folder, its family is not in the table of scales, it is quantised already, its
            files are damaged, or its tensors are not those that its config.json asks for.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        fields = read_config(folder)
        self.folder, self.device = folder, device
        self.model_type = str(fields.get("model_type"))
        if self.model_type not in FAMILIES:
            raise UserError(
                f"{folder / 'config.json'}: model_type {shown(fields.get('model_type'))} is none of "
                f"{', '.join(FAMILIES)}, whose layers quantize knows"
            )
        check_not_quantised(folder, fields)
        try:
            self.config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            with torch.device("meta"):
                self._model: Any = AutoModelForCausalLM.from_config(
                    self.config, dtype=torch.float32, trust_remote_code=False
                )
        except MISTAKES as error:
            raise UserError(f"{folder} holds a model that cannot be loaded: {first_line(error)}") from error
        self._decoder: Any = self._model.eval().requires_grad_(requires_grad=False).model
        self.depth = len(self._decoder.layers)
        self.is_tied = bool(getattr(self.config, "tie_word_embeddings", False))
        self._files = weight_files(folder, fields)
        self._dtypes: dict[str, torch.dtype] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name in dict.fromkeys(self._files.values()):
            for key, header in read_header(folder / name).items():
                if header.dtype not in _DTYPES:
                    raise UserError(
                        f"{folder / name} holds {key} as {header.dtype}: quantize reads {', '.join(_DTYPES)}"
                    )
                self._dtypes[key], self._shapes[key] = _DTYPES[header.dtype], header.shape
        # Parameter of the model -> the tensors of the folder that it is made of; several if they are experts'.
        self._keys = {name: self._keys_of(name) for name, _ in self._model.named_parameters()}
        used = {key for rows in self._keys.values() for row in rows for key in row}
        left = {key for key in self._files.keys() - used if not key.endswith("rotary_emb.inv_freq")}
        left -= {HEAD} if self.is_tied else set()
        if left:
            raise UserError(f"{folder} holds {some(left)}, for which its config.json has no place: export it again")
        self._fill_positions()

    @property
    def embedding(self) -> Tensor:
        """The embedding matrix [V, D]."""
        return self._read(EMBEDDING)

    @property
    def zeta(self) -> dict[str, Tensor]:
        """Parameters outside of the blocks by their names in the folder: a learnt zeta, or none."""
        return {_ZETA: self._read(_ZETA)} if _ZETA in self._keys else {}

    @property
    def head(self) -> Tensor:
        """The matrix of the output head [V, D]; there must be one of its own."""
        return self._read(HEAD)

    @property
    def norm(self) -> Tensor:
        """The weight of the norm before the head."""
        return self._read(NORM)

    def normed(self, x_BTD: Tensor, weight: Tensor) -> Tensor:
        """What the head reads."""
        return torch.func.functional_call(self._decoder.norm, {"weight": weight}, (x_BTD,))

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype that a parameter of the model has in the folder."""
        return self._dtypes[self._keys[name][0][0]]

    def prefix(self, number: int) -> str:
        """What the names of a decoder layer's tensors begin with."""
        return f"model.layers.{number}."

    def empty_layers(self) -> list[nn.Module]:
        """The decoder layers without their weights."""
        return list(self._decoder.layers)

    @contextmanager
    def layer(self, number: int) -> Iterator[nn.Module]:
        """Yields a decoder layer with its weights in float32, and drops them after the block."""
        layer: nn.Module = self._decoder.layers[number]
        places = [(owner, leaf, name) for name, owner, leaf in _parameters(layer)]
        empty = [owner._parameters[leaf] for owner, leaf, _ in places]
        try:
            for owner, leaf, name in places:
                values = self._read(self.prefix(number) + name)
                owner._parameters[leaf] = nn.Parameter(values, requires_grad=False)
            yield layer
        finally:
            for (owner, leaf, _), parameter in zip(places, empty, strict=True):
                owner._parameters[leaf] = parameter

    def calls(self, positions_BT: Tensor) -> list[Callable[[nn.Module, Tensor], Tensor]]:
        """For each decoder layer a function that calls it, as the model does, on hidden states at these positions."""
        layers, norm = self._decoder.layers, self._decoder.norm
        noted = [_Noted() for _ in layers]
        self._decoder.layers, self._decoder.norm = nn.ModuleList(noted), nn.Identity()
        try:
            x_BTD = torch.zeros(*positions_BT.shape, self.config.hidden_size, device=self.device)
            self._decoder(inputs_embeds=x_BTD, position_ids=positions_BT, use_cache=False)
        finally:
            self._decoder.layers, self._decoder.norm = layers, norm
        return [partial(_call, arguments=note.arguments, named=note.named) for note in noted]

    def _keys_of(self, name: str) -> list[list[str]]:
        """The tensors of the folder that a parameter is made of: a list for each expert, or one list of one."""
        shape = tuple(self._model.get_parameter(name).shape)
        prefix, inner = _split(name)
        whole = prefix + on_disk(self.model_type, inner)
        keys = next(([[key]] for key in (whole, name) if key in self._dtypes), None)
        if keys is None and (parts := expert_parts(inner, shape[0])):
            keys = [[prefix + on_disk(self.model_type, part) for part in row] for row in parts]
            shape = (shape[1] // len(parts[0]), *shape[2:])
        for key in (key for row in keys or [[whole]] for key in row):
            if key not in self._dtypes:
                raise UserError(f"{self.folder} lacks {key}, which its config.json asks for")
            if self._shapes[key] != shape:
                there = list(self._shapes[key])
                raise UserError(
                    f"{self.folder} holds {key} of shape {there}, but its config.json gives it {list(shape)}"
                )
        assert keys is not None
        return keys

    def _read(self, name: str) -> Tensor:
        """The values of a parameter, float32."""
        rows = [[self._tensor(key) for key in row] for row in self._keys[name]]
        is_whole = rows[0][0].ndim == self._model.get_parameter(name).ndim
        return rows[0][0] if is_whole else torch.stack([torch.cat(row) for row in rows])

    def _tensor(self, key: str) -> Tensor:
        path = self.folder / self._files[key]
        with safe_open(path, framework="pt") as file:
            values: Tensor = file.get_tensor(key).to(self.device, torch.float32, copy=True)
        if not torch.isfinite(values).all():
            raise UserError(
                f"{path} holds {key} with NaN or infinite numbers: its training went wrong, or the file is damaged; "
                "take an earlier one"
            )
        return values

    def _fill_positions(self) -> None:
        """Makes the rotary tables anew: on the meta device they have no values, and no file holds them."""
        rotary = getattr(self._decoder, "rotary_emb", None)
        if rotary is not None:
            self._decoder.rotary_emb = type(rotary)(config=self.config).to(self.device)
            for name, values in self.zeta.items():
                self._model.get_parameter(name).data.copy_(values)


class _Noted(nn.Module):
    """Stands in a decoder layer's place and notes what it is called with beside hidden states."""

    arguments: tuple[Any, ...]
    named: Mapping[str, Any]

    def forward(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
        self.arguments, self.named = arguments, named
        return hidden_states


def _split(name: str) -> tuple[str, str]:
    """A parameter's name as the beginning that a decoder layer's have, "" for others, and the rest."""
    words = name.split(".")
    return (".".join(words[:3]) + ".", ".".join(words[3:])) if words[1] == "layers" else ("", name)


def _call(layer: nn.Module, x_BTD: Tensor, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    output = layer(x_BTD, *arguments, **named)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(name, owner, name in the owner) of each parameter."""
    for owner_name, owner in module.named_modules():
        for leaf, parameter in owner._parameters.items():
            if parameter is not None:
                yield (f"{owner_name}.{leaf}" if owner_name else leaf), owner, leaf


@contextmanager
def heard(layer: nn.Module, hear: Hear, *, round_activations: bool = False) -> Iterator[None]:
    """Lets `hear` get what each linear layer of a decoder layer reads, experts one by one, while the layer computes.

    round_activations: whether quantised layers read rows that are rounded to int8; `hear` gets them as they were.
    """
    round_rows = rounded_rows if round_activations else None
    hooks, experts = [], []

    def listener(name: str, *, rounds: bool) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
        def listen(_module: nn.Module, arguments: tuple[Any, ...]) -> Any:
            hear(name, arguments[0])
            return (rounded_rows(arguments[0]), *arguments[1:]) if rounds else None

        return listen

    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(listener(name, rounds=round_activations)))
        elif are_experts(module):
            experts.append(module)
            module.forward = partial(computed, module, name, hear=hear, round_rows=round_rows)
        elif name == ROUTER:
            hooks.append(module.register_forward_pre_hook(listener(name, rounds=False)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in experts:
            del module.forward
