"""Manages several adapters on one model: adds, activates, mixes, merges and deletes them while threads generate."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import ParamWrapper
from torch import nn
from transformers import PreTrainedTokenizerBase

from stellarbyte.errors import UserError
from stellarbyte.file_manifest import MANIFEST
from stellarbyte_torch.lora.adapters import apply_lora_to_model, load_lora
from stellarbyte_torch.lora.base import check_base_stays
from stellarbyte_torch.lora.compiled_slot import SLOT, CompiledSlot
from stellarbyte_torch.lora.merging import Merged, MergeDrift, merge, merge_and_save
from stellarbyte_torch.lora.mixing import check_weights, taking_part
from stellarbyte_torch.lora.modules import lora_layers
from stellarbyte_torch.lora.swap_lock import SwapLock
from stellarbyte_torch.lora.weighted_dora import weigh

BASE = "__base__"  # PEFT's name for batch rows without an adapter


class LoRAManager:
    """The adapters of one model by name. PEFT holds each of them once, and the model is never rebuilt.

    `model` is a PeftModel as soon as an adapter is registered. Every method may be called while other threads run the
    model: a swap waits for the forward passes under way, then holds the lock for the milliseconds that it takes. A swap
    may happen between two tokens of `model.generate`, but never within `generate` of this class. Methods that swap
    raise UserError during a backward pass and inside the calling thread's own forward pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self._base: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
        self._lock = SwapLock(self._base)
        self._merged: Merged | None = None
        self._slot: CompiledSlot | None = None
        self._active: dict[str, float] = {}
        self._trainable = False
        if isinstance(model, PeftModel):
            for name in model.peft_config:
                config: Any = model.peft_config[name]
                check_base_stays(config)
            self._active = dict.fromkeys(model.active_adapters, 1.0)
            self._trainable = not model.active_peft_config.inference_mode
        self._note_stacked_parameters()

    @property
    def names(self) -> list[str]:
        """The names of all registered adapters."""
        return [name for name in getattr(self.model, "peft_config", {}) if name != SLOT]

    @property
    def active(self) -> dict[str, float]:
        """The active adapters with their weights; empty for the bare base."""
        return dict(self._active)

    @property
    def is_merged(self) -> bool:
        """Whether the active adapters are merged into the base."""
        return self._merged is not None

    def register(self, name: str, source: LoraConfig | str | Path) -> None:
        """Adds an adapter, not yet active: an untrained one from a config, a trained one from a PEFT folder or Hub id.

        Raises UserError if the name is in use, the model lacks a target, the adapter belongs to another base, or it
        would change the base that all share (PiSSA, OLoRA, trained biases); the model is then as it was.
        """
        if name in self.names:
            raise UserError(f"adapter name {name!r} is in use: delete that adapter first, or choose another name")
        with self._swap(f"register {name!r}"), self._unmerged():
            was_training = self._base.training
            if isinstance(source, LoraConfig):
                check_base_stays(source)
                self.model = apply_lora_to_model(self.model, source, name)
            else:
                self.model = load_lora(self.model, source, name, shares_base=True)
            self.model.train(was_training)  # new modules start in training mode even in a model in eval mode
            self._note_stacked_parameters()
            self._switch()

    def activate(self, adapters: str | Mapping[str, float], *, trainable: bool = False) -> None:
        """Switches to one adapter, or to several, each with a weight that multiplies its update; unmerges first.

        With weight 0 the output is to the bit what it is without the adapter. trainable: whether they get gradients.
        Raises UserError if a name is unknown, a weight is not finite, or not 1 for an adapter that cannot be scaled; on
        a compiled model, if its slot cannot hold the adapters.
        """
        weights = {adapters: 1.0} if isinstance(adapters, str) else {name: float(w) for name, w in adapters.items()}
        if not weights:
            raise UserError("no adapter to activate: name one, or call deactivate()")
        self._check_known(weights)
        check_weights(self.model, weights)
        if self._slot is not None and trainable:
            raise UserError(
                "a compiled model's adapters are copies in its slot and do not train: train before compile()"
            )
        with self._swap("activate an adapter"):
            self._unmerge()
            if self._slot is not None:
                self._slot.check_fits(taking_part(weights))
            self._active, self._trainable = weights, trainable
            self._switch()

    def deactivate(self) -> None:
        """Goes back to the bare base, whose weights are to the bit what they were before any adapter."""
        with self._swap("deactivate the adapters"):
            self._unmerge()
            self._active = {}
            self._switch()

    def merge(self) -> MergeDrift:
        """Adds the active adapters to the base weights, in float32 and rounded once, to run at the base's speed.

        The adapted modules' own weights are kept beside the merged ones until unmerge. Returns what rounding cost.
        Raises UserError if no adapter is active or one is non-linear, or if the model is quantised or compiled.
        """
        if self._slot is not None:
            raise UserError(
                "a compiled model keeps its adapters in a slot: merge_and_save, and load that folder instead"
            )
        with self._swap("merge"):
            self._check_active("merge")
            self._merged = merge(self.model)
            return self._merged.drift

    def unmerge(self) -> None:
        """Puts back the base's own weights to the bit, the adapters beside them. Raises UserError if none is merged."""
        with self._swap("unmerge"):
            if self._merged is None:
                raise UserError("nothing is merged: call merge() first")
            self._unmerge()

    def delete(self, name: str) -> None:
        """Removes an adapter and frees its memory; an active one is switched off. Raises UserError: an unknown name."""
        self._check_known([name])
        with self._swap(f"delete {name!r}"):
            if name in self._active:
                self._unmerge()
                del self._active[name]
            with self._unmerged():
                if list(self.model.peft_config) == [name]:  # PEFT's wrapper does not run without any adapter
                    self.model = self.model.unload()
                    return
                # Otherwise PEFT would itself choose another adapter and activate it.
                others = [other for other in self.model.peft_config if other != name]
                keep = [SLOT] if self._slot is not None else list(self._active) or others[:1]
                self.model.base_model.set_adapter(keep, inference_mode=True)
                self.model.delete_adapter(name)
                self._switch()

    def save(self, name: str, folder: str | Path) -> None:
        """Writes one adapter as a folder in PEFT's format. Raises UserError if the name is unknown."""
        self._check_known([name])
        with self._lock.shared():
            (Path(folder) / MANIFEST).unlink(missing_ok=True)  # it is about the adapter that is overwritten now
            self.model.save_pretrained(str(folder), selected_adapters=[name])
            # PEFT writes every adapter except "default" into a subfolder; here `folder` itself is the adapter's.
            nested = Path(folder) / name
            if nested.is_dir() and name != "default":
                for file in nested.iterdir():
                    file.replace(Path(folder) / file.name)
                nested.rmdir()

    def merge_and_save(
        self, folder: str | Path, dtype: torch.dtype | None = None, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> MergeDrift:
        """Writes the base with the active adapters merged in as a plain Hugging Face folder; see merging.py."""
        with self._swap("merge"):
            self._check_active("merge")
            with self._unmerged():
                return merge_and_save(self.model, folder, dtype, tokenizer)

    def compile(self, rank: int | None = None, **options: Any) -> None:
        """Compiles the model with torch.compile so that activate and deactivate never compile it again.

        The model then runs a single slot of the given rank (by default the highest registered), into which activate
        copies the adapters. PEFT's layers list their adapters, so register and delete each cause one more compilation.
        options: torch.compile's arguments.
        Forward passes inside compiled code do not take the lock by themselves: use `forward`, `generate` or `hold`.
        Raises UserError if no adapter is registered, or one that a slot cannot imitate.
        """
        if not self.names:
            raise UserError("no adapter is registered, so the slot's modules are unknown: register one first")
        with self._swap("compile"):
            self._unmerge()
            self._scale({})
            self._slot = CompiledSlot(self.model, self.names, rank)
            self._switch()
            self._base.compile(**options)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keeps swaps out of the block, for several forward passes that belong together."""
        with self._lock.shared():
            yield

    @contextmanager
    def bare(self) -> Iterator[None]:
        """Inside the block the model is the base alone; afterwards the same adapters are active again."""
        with self._swap("run the base alone"), self._unmerged():
            active, self._active = self._active, {}
            try:
                self._switch()
                yield
            finally:
                self._active = active
                self._switch()

    def forward(self, *args: Any, adapter_names: list[str | None] | None = None, **kwargs: Any) -> Any:
        """The model's output. adapter_names: each batch row's adapter, or None for the base; for inference only."""
        with self._rows(adapter_names) as rows:
            return self.model(*args, **kwargs, **rows)

    def generate(self, *args: Any, adapter_names: list[str | None] | None = None, **kwargs: Any) -> Any:
        """The model's generate, with one set of adapters from first to last token; adapter_names as in forward."""
        with self._rows(adapter_names) as rows:
            return self.model.generate(*args, **kwargs, **rows)

    @contextmanager
    def _rows(self, adapter_names: list[str | None] | None) -> Iterator[dict[str, list[str]]]:
        if adapter_names is None:
            with self._lock.shared():
                yield {}
            return
        names = [name or BASE for name in adapter_names]
        self._check_known(set(names) - {BASE})
        # PEFT hands rows to the layers through hooks on the model, which other threads' forwards would see.
        with self._swap("run rows with adapters of their own"), self._unmerged():
            self.model.base_model.enable_adapter_layers()
            self._scale({})
            hooks = {module: set(module._forward_pre_hooks) for module in self.model.modules()}
            try:
                yield {"adapter_names": names}
            finally:
                for module, own in hooks.items():  # PEFT leaves its hooks behind if the forward raises
                    for leftover in set(module._forward_pre_hooks) - own:
                        del module._forward_pre_hooks[leftover]
                        module._forward_pre_hooks_with_kwargs.pop(leftover, None)
                self._switch()

    @contextmanager
    def _swap(self, what: str) -> Iterator[None]:
        with self._lock.alone(what):
            yield

    @contextmanager
    def _unmerged(self) -> Iterator[None]:
        """Unmerges the base inside the block; what was merged is merged again afterwards, from the same weights."""
        was_merged = self._merged is not None
        self._unmerge()
        try:
            yield
        finally:
            if was_merged and taking_part(self._active):
                self._merged = merge(self.model)

    def _unmerge(self) -> None:
        if self._merged is not None:
            self._merged.undo()
            self._merged = None

    def _switch(self) -> None:
        """Makes PEFT's layers follow self._active. The caller holds the lock alone, and nothing is merged."""
        if self._slot is not None:
            self._slot.fill(taking_part(self._active))
            return
        if not self.names:
            return
        tuner, weights = self.model.base_model, taking_part(self._active)
        tuner._enable_adapter_layers(enabled=bool(weights))
        if weights:  # after enabling, which lets them train
            tuner.set_adapter(list(weights), inference_mode=not self._trainable)
        self.model.active_adapter = tuner.active_adapters[0]  # PEFT's wrapper reads this adapter's config
        self._scale(self._active)

    def _scale(self, weights: Mapping[str, float]) -> None:
        """Gives the adapters these weights, and all others 1."""
        for layer in lora_layers(self.model).values():
            for name in self.names:
                weigh(layer, name, weights.get(name, 1.0))

    def _note_stacked_parameters(self) -> None:
        # PEFT applies these adapters by replacing the module's parameter during each forward pass.
        self._lock.one_forward_at_a_time = any(isinstance(module, ParamWrapper) for module in self.model.modules())

    def _check_known(self, names: Any) -> None:
        for name in names:
            if name not in self.names:
                raise UserError(f"adapter {name!r} is not registered: there are {', '.join(self.names) or 'none'}")

    def _check_active(self, what: str) -> None:
        if not taking_part(self._active):
            raise UserError(f"no adapter is active, so there is nothing to {what}: activate one first")
