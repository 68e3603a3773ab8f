"""A model in PyTorch whose passes can be timed, and what its device reaches at its best."""

import inspect
from typing import Any

import torch
from transformers import DynamicCache

from stellarbyte.host_memory import free_bytes
from stellarbyte.report.machine import Operations, measure_machine, sizes
from stellarbyte.report.measurements import Machine
from stellarbyte.report.timing import Pass
from stellarbyte_torch.modeling_stellarbyte import CACHE


class TorchEngine:
    """A causal language model in eval mode; see stellarbyte.report.timing.Engine."""

    def __init__(self, model: Any) -> None:
        self._model, self._device = model, model.device
        self._takes_last = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.library = f"torch {torch.__version__.partition('+')[0]}"

    @torch.inference_mode()
    def machine(self) -> Machine:
        """See Engine; of a few matrices and arrays in the model's dtype."""
        dtype, device, is_cpu = self._model.dtype, self._device, self._device.type == "cpu"
        weight_bytes = sum(weight.nbytes for weight in self._model.parameters())
        side, nbytes = sizes(is_processor=is_cpu, weight_bytes=weight_bytes)
        square = torch.ones(side, side, dtype=dtype, device=device)
        large = torch.ones(nbytes // dtype.itemsize, dtype=dtype, device=device)
        other = torch.empty_like(large)
        operations = Operations(
            lambda: self._waited(square @ square),
            lambda: self._waited(other.copy_(large)),
            lambda: self._waited(large.sum()),
        )
        name = str(dtype).removeprefix("torch.")
        card, threads = (None, torch.get_num_threads()) if is_cpu else (torch.cuda.get_device_name(device), None)
        return measure_machine(operations, side, nbytes, name, card, threads)

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
        return self._waited(self._model(ids, use_cache=True, **given, **options))

    @torch.inference_mode()
    def _cache(self, batch: int, length: int) -> Any:
        """A cache of so many tokens; all are the same one, which costs no pass over them."""
        cache: Any = DynamicCache(config=self._model.config)
        self._forward(self._ids(batch, 1), cache)
        for index, layer in enumerate(cache.layers if length > 1 else ()):
            if not hasattr(layer, "keys"):  # a state, as large after one token as after many
                continue
            keys, values = (x[:, :, :1].repeat(1, 1, length - 1, 1) for x in (layer.keys, layer.values))
            cache.update(keys, values, index)
        return cache

    def _ids(self, batch: int, length: int) -> torch.Tensor:
        draws = torch.Generator().manual_seed(0)
        return torch.randint(0, self._model.config.vocab_size, (batch, length), generator=draws).to(self._device)

    def _waited(self, result: Any) -> Any:
        """The result, once the device has it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return result

    def _free(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
