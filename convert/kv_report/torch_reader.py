"""Reads rows by the model of a Hugging Face folder, in PyTorch."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from convert.kv_report.measuring import Reading, Setting
from stellarbyte_torch.generate import load
from stellarbyte_torch.kv_cache import PrunedCache
from stellarbyte_torch.kv_cache.stock import let_attend
from stellarbyte_torch.modeling_stellarbyte import CACHE


class TorchReader:
    """A folder's model. Raises UserError: it is damaged, or no pruned cache can attend for it."""

    def __init__(self, folder: Path, device: str | None) -> None:
        self._model: Any
        self._model, _ = load(folder, device)
        let_attend(self._model)

    @torch.no_grad()
    def read(self, ids_NT: np.ndarray, prompt: int, setting: Setting | None) -> Reading:
        """Reads rows whose first `prompt` tokens are the prompt."""
        ids, cache = torch.from_numpy(ids_NT).to(self._model.device), self._cache(setting)
        self._next(ids[:, :prompt], cache)
        kept = []
        if isinstance(cache, PrunedCache):
            kept = [layer.index_BKC.cpu().numpy().copy() for layer in cache.layers]  # decoding changes it in place
        loss, steps = 0.0, ids.shape[1] - 1 - prompt
        started = time.perf_counter()
        for place in range(prompt, prompt + steps):
            log_p_NV = self._next(ids[:, place : place + 1], cache).float().log_softmax(dim=-1)
            loss -= log_p_NV.gather(1, ids[:, place + 1 : place + 2]).double().mean().item()
        seconds = time.perf_counter() - started
        return Reading(loss / steps, kept, self._bytes(cache) // len(ids), len(ids) * steps / seconds)

    @torch.no_grad()
    def guess(self, ids_MP: np.ndarray, answers_MA: np.ndarray, setting: Setting | None) -> np.ndarray:
        """The likeliest token in the place of each token of the answers, once it has read all before it: [M, A]."""
        cache, answers = self._cache(setting), torch.from_numpy(answers_MA).to(self._model.device)
        pieces = [torch.from_numpy(ids_MP).to(self._model.device), *answers[:, :-1].split(1, dim=1)]
        guesses = [self._next(piece, cache).argmax(dim=-1) for piece in pieces]
        return torch.stack(guesses, dim=1).cpu().numpy()

    def _cache(self, setting: Setting | None) -> Any:
        if setting is None:
            return DynamicCache(config=self._model.config)
        return PrunedCache(self._model, setting.slots, setting.policy, setting.shape)

    def _next(self, ids_NT: torch.Tensor, cache: Any) -> torch.Tensor:
        """The logits after the last of these tokens, [N, V]."""
        return self._model(ids_NT, **{CACHE: cache}, use_cache=True, logits_to_keep=1).logits[:, -1]

    @staticmethod
    def _bytes(cache: Any) -> int:
        if isinstance(cache, PrunedCache):
            return cache.nbytes
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
