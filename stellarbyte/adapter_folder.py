"""The files of an adapter in PEFT's format; weights in a pickle are refused."""

from pathlib import Path

from stellarbyte.errors import UserError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLED_WEIGHTS = "adapter_model.bin"


def check_not_pickled(folder: Path) -> None:
    """Refuses a folder that holds its weights only as a pickle.

    Raises:
        UserError: the weights are a pickle.
    """
    if (folder / _PICKLED_WEIGHTS).exists() and not (folder / ADAPTER_WEIGHTS).exists():
        raise UserError(
            f"{folder} holds its weights in {_PICKLED_WEIGHTS}, a pickle, which can run any program when it is read: "
            f"save the adapter again as {ADAPTER_WEIGHTS} (PEFT's save_pretrained does so)"
        )
