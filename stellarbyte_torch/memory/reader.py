"""Any causal language model of Transformers as a memory uses it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from stellarbyte.errors import UserError
from stellarbyte.file_manifest import read_manifest
from stellarbyte.files import sha256_of, sha256_of_json
from stellarbyte.memory.reader import MIDDLE_SHARE, Reader, middle
from stellarbyte.tokenizer_file import works
from stellarbyte_torch.model_folder import load_model, load_tokenizer

# What decides a model's states. Its generation_config.json and its chat template, for example, do not.
_WEIGHTS = ("config.json", "tokenizer.json", "*.safetensors", "*.bin")


class TorchReader(Reader):
    """Reads texts with a causal language model.

    Args:
        model: in eval mode; adapters that PEFT puts on it are not used, see `bare`.
        tokenizer: the one that the model was trained with.
        name: the model's name, for people.
        weights: a hash of the weights and of what else decides the states.
        bare: a context in which no adapter is active. States must not depend on which adapter a chat uses.

    Raises:
        UserError: the model has no list of layers.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        weights: str,
        bare: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        config = model.config.get_text_config()
        depth, context = int(config.num_hidden_layers), getattr(config, "max_position_embeddings", None)
        begin = tokenizer.bos_token_id
        begin = getattr(config, "bos_token_id", None) if begin is None else begin
        layer = middle(depth)
        hash = sha256_of_json({"embeddings and layer": layer, "begin": begin, "weights": weights})
        super().__init__(name, hash, layer, int(config.hidden_size), int(context or tokenizer.model_max_length), begin)
        self._model, self._tokenizer, self._bare = model, tokenizer, bare
        self._last = _layers(model, depth)[layer - 1]

    def tokens(self, text: str) -> list[int]:
        """See Reader. Raises UserError: the tokenizer fails on the text."""
        with works(self._tokenizer.name_or_path):
            return list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def sums(self, rows: Sequence[Sequence[int]], weights: Sequence[Sequence[float]]) -> np.ndarray:
        """See Reader; the layers after the middle one are not computed."""
        longest = max(map(len, rows))
        input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask_BT = torch.zeros(len(rows), longest, dtype=torch.long)
        weights_BT = torch.zeros(len(rows), longest)
        for number, row in enumerate(rows):  # padding stands behind, where causal attention does not look
            input_ids[number, : len(row)] = torch.tensor(row)
            mask_BT[number, : len(row)] = 1
            weights_BT[number, : len(row)] = torch.tensor(weights[number])
        device = self._model.device
        states_BTD = self._states(input_ids.to(device), mask_BT.to(device))
        return torch.einsum("BTD,BT->BD", states_BTD, weights_BT.to(device)).cpu().numpy()

    @torch.no_grad()
    def loss(self, row: Sequence[int], first: int) -> float:
        """See Reader."""
        input_ids = torch.tensor([row], device=self._model.device)
        with self._bare():
            logits_1TV = self._model(input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False).logits
        logits = logits_1TV[0, first - 1 : -1].float()
        return float(nn.functional.cross_entropy(logits, input_ids[0, first:]))

    @torch.no_grad()
    def _states(self, input_ids: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        with self._bare(), _stopping_after(self._last) as found, suppress(_Reached):
            self._model.base_model(input_ids=input_ids, attention_mask=mask_BT, use_cache=False)
        embeddings_BTD = self._model.get_input_embeddings()(input_ids)
        return _at_length_one(embeddings_BTD) + MIDDLE_SHARE * _at_length_one(found[0])


def open_reader(folder: Path, *, device: str | None = None, dtype: str = "auto") -> TorchReader:
    """The model in a Hugging Face folder as a reader. Raises UserError where `load_model` and `load_tokenizer` do."""
    model = load_model(folder, device, dtype)
    return TorchReader(model, load_tokenizer(folder), folder.resolve().name, weights_hash(folder))


def weights_hash(folder: Path) -> str:
    """A hash of a folder's weights, config and tokenizer: from its manifest, or else from the files themselves."""
    manifest = read_manifest(folder)
    known = {} if manifest is None else manifest["files"]
    names = sorted({path.name for pattern in _WEIGHTS for path in folder.glob(pattern)})
    return sha256_of_json({name: known.get(name) or sha256_of(folder / name) for name in names})


def _at_length_one(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(x.float(), dim=-1)


class _Reached(Exception):
    """The middle layer has been computed, and the rest is not needed."""


@contextmanager
def _stopping_after(layer: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Ends forward passes inside the block by _Reached, and puts the layer's output into the list."""
    found: list[torch.Tensor] = []

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        found.append(output if isinstance(output, torch.Tensor) else output[0])
        raise _Reached

    hook = layer.register_forward_hook(stop)
    try:
        yield found
    finally:
        hook.remove()


def _layers(model: Any, depth: int) -> nn.ModuleList:
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise UserError(
        f"{type(model).__name__} has no list of {depth} layers, after the middle one of which a memory takes its "
        "states: name another embedder by --memory-embedder"
    )
