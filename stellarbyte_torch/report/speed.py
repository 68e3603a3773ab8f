"""A model in PyTorch whose passes can be timed, and what its device reaches at its best."""

import inspect
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache

from stellarbyte.host_memory import free_bytes
from stellarbyte.processor import processor_name
from stellarbyte.report.measurements import Machine
from stellarbyte.report.timing import Pass
from stellarbyte_torch.modeling_stellarbyte import CACHE

# What the machine is measured on: the side of square matrices, and the most bytes of an array. A small model's weights
# may lie in caches, so the array has no more bytes than these.
_SIDES, _BYTES = {"cpu": 2048}, 256 << 20
_SIDE = 8192
_ROUNDS = 10


class TorchEngine:
    """A causal language model in eval mode; see stellarbyte.report.timing.Engine."""

    def __init__(self, model: Any) -> None:
        self._model, self._device = model, model.device
        self._takes_last = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.library = f"torch {torch.__version__.partition('+')[0]}"

    @torch.inference_mode()
    def machine(self) -> Machine:
        """The best of a few large matmuls, and of a few passes over an array as large as the weights."""
        side, dtype, device = _SIDES.get(self._device.type, _SIDE), self._model.dtype, self._device
        square = torch.ones(side, side, dtype=dtype, device=device)
        nbytes = min(_BYTES, sum(weight.nbytes for weight in self._model.parameters()))
        large = torch.ones(nbytes // dtype.itemsize, dtype=dtype, device=device)
        other = torch.empty_like(large)
        matmul = self._best(lambda: square @ square)
        copied = 2 * nbytes / self._best(lambda: other.copy_(large))
        read = nbytes / self._best(lambda: large.sum())
        is_cpu = device.type == "cpu"
        return Machine(
            name=(processor_name() or "a processor") if is_cpu else torch.cuda.get_device_name(device),
            dtype=str(dtype).removeprefix("torch."),
            flops=2 * side**3 / matmul,
            bandwidth=max(copied, read),
            threads=torch.get_num_threads() if is_cpu else None,
        )

    def prefill(self, batch: int, length: int) -> Pass:
        """See Engine."""
        ids = self._ids(batch, length)
        return Pass(lambda: self._forward(ids, None), None, self._free)

    def decode(self, batch: int, length: int) -> Pass:
        """See Engine."""
        ids, held = self._ids(batch, 1), [self._cache(batch, length)]

        def close() -> None:
            held.clear()
            self._free()

        return Pass(lambda: self._forward(ids, held[0]), None, close)

    def room(self) -> int | None:
        """See Engine."""
        return free_bytes() if self._device.type == "cpu" else None

    def is_out_of_memory(self, error: Exception) -> bool:
        """See Engine."""
        return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)

    @torch.inference_mode()
    def _forward(self, ids: torch.Tensor, cache: Any) -> Any:
        options = {"logits_to_keep": 1} if self._takes_last else {}
        given = {} if cache is None else {CACHE: cache}
        out = self._model(ids, use_cache=True, **given, **options)
        self._wait()
        return out

    @torch.inference_mode()
    def _cache(self, batch: int, length: int) -> Any:
        """A cache of so many tokens; all are the same one, which costs no pass over them."""
        cache: Any = DynamicCache(config=self._model.config)
        self._forward(self._ids(batch, 1), cache)
        for index, layer in enumerate(cache.layers if length > 1 else ()):
            keys, values = (x[:, :, :1].repeat(1, 1, length - 1, 1) for x in (layer.keys, layer.values))
            cache.update(keys, values, index)
        return cache

    def _ids(self, batch: int, length: int) -> torch.Tensor:
        draws = torch.Generator().manual_seed(0)
        return torch.randint(0, self._model.config.vocab_size, (batch, length), generator=draws).to(self._device)

    def _best(self, run: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(_ROUNDS):
            self._wait()
            start = time.perf_counter()
            run()
            self._wait()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _free(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
