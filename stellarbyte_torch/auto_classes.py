"""Registers StellarByte with Transformers' Auto classes, without importing Transformers before it is needed."""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_CONFIGURATION = "stellarbyte_torch.configuration_stellarbyte"
_MODELING = "stellarbyte_torch.modeling_stellarbyte"


def register_with_transformers() -> None:
    """Registers now if Transformers is loaded, otherwise once it is: --help must not wait seconds for its import."""
    if "transformers" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _RegisteringFinder())


def _register() -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    from stellarbyte_torch.configuration_stellarbyte import ByteConfig
    from stellarbyte_torch.modeling_stellarbyte import ByteDecoder, ByteForCausalLM

    AutoConfig.register(ByteConfig.model_type, ByteConfig)
    AutoModel.register(ByteConfig, ByteDecoder)
    AutoModelForCausalLM.register(ByteConfig, ByteForCausalLM)
    # `transformers serve` looks up the model's class by this name.
    MODEL_MAPPING_NAMES[ByteConfig.model_type] = ByteDecoder.__name__
    # Makes save_pretrained copy the two files beside the weights, so that trust_remote_code can load the folder.
    ByteConfig.register_for_auto_class()
    ByteDecoder.register_for_auto_class("AutoModel")
    ByteForCausalLM.register_for_auto_class("AutoModelForCausalLM")


class _RegisteringFinder(MetaPathFinder):
    """Removes itself at the first import that leads to Transformers, and registers when that import is done.

    Our own two modules count as well: they import Transformers at their top, before their classes exist.
    """

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the finder protocol
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname not in ("transformers", _CONFIGURATION, _MODELING):
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    """A module's original loader, followed by the registration."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module that the original loader creates."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Runs the module with its original loader, which it keeps, and then registers."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _register()
