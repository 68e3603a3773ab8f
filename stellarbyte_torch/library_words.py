"""Prints libraries' warnings and errors in our own form, each once, and drops those listed here as noise."""

import logging
import re
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from stellarbyte.adapter_base import AdapterWarning

# The log messages that are dropped: the logger's name, and an expression for the beginning.
_NOISE = (
    # Transformers imports torchao if it is installed. torchao reports each kernel that is for another machine, and
    # registers its enums in a way that torch has deprecated.
    ("torchao", r"Skipping import of cpp|Failed to load |Warning: Detected no triton"),
    # accelerate imports DeepSpeed if it is installed, and DeepSpeed reports that it has found no GPU.
    ("DeepSpeed", r"Setting accelerator to CPU"),
    ("torch.utils._pytree", r"<enum '\w+'> is an Enum subclass and is now natively supported"),
    # Old configs, such as GPT-2's, cause this; the default loss is the one that we train with.
    ("transformers", r"`loss_type=None` was set in the config but it is unrecognized"),
    # We refuse what is too long for a model, or cut it, ourselves.
    ("transformers", r"Token indices sequence length is longer than the specified maximum"),
    # A resumed run causes this, because a checkpoint holds numbers of steps where the config gives shares of all steps.
    # `finetune` has already checked the fields that must not change.
    ("transformers", r"Warning: The following arguments do not match the ones in the `trainer_state\.json`"),
)
# The same for Python's warnings: the category, and an expression for the beginning.
_NOISY_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    # Python compiles files that an installer did not, and warns about strings in torchao.
    (SyntaxWarning, ""),
    # PEFT uses Transformers' old name.
    (FutureWarning, r"`is_gradient_checkpointing` is deprecated"),
    # DeepSpeed and accelerate use torch's old names.
    (FutureWarning, r"`torch\.distributed\.\w+` is deprecated"),
    # PEFT warns of names such as "a", which are harmless; we refuse the harmful ones ourselves.
    (UserWarning, r"Adapter name .* should not be contained in the prefix"),
    # PEFT looks among modules only, and a pattern may be for a parameter; we refuse one that fits neither.
    (RuntimeWarning, r"The following (rank|alpha)_pattern keys did not match any targeted module"),
)
_LONGEST = 1000


def hear_libraries(program: str, *, speaks: bool = True) -> None:
    """Makes warnings and errors of all libraries lines such as "program: transformers: …", each printed once.

    They go to the stderr of the moment, which a live progress display replaces by its own. Libraries' progress bars are
    turned off, because they would garble that display. With several processes, each prints its errors, but only the one
    that `speaks` prints warnings.
    """
    for category, beginning in _NOISY_WARNINGS:
        warnings.filterwarnings("ignore", message=beginning, category=category)
    teller = _Teller(program, logging.WARNING if speaks else logging.ERROR)
    for handler in [handler for handler in logging.root.handlers if isinstance(handler, _Teller)]:
        logging.root.removeHandler(handler)
    logging.root.addHandler(teller)
    # DeepSpeed is imported later; it then gives its logger a handler that writes to stdout, and stops propagation.
    deepspeed = logging.getLogger("DeepSpeed")
    deepspeed.filters = [teller.take_over]
    warnings.showwarning = teller.tell_warning

    import torch  # noqa: F401 - the import gives torch's loggers their handlers, which are removed below

    _give_to_root("torch")
    from transformers.utils import logging as transformers_logging

    _give_to_root("transformers")
    transformers_logging.disable_progress_bar()


def _give_to_root(library: str) -> None:
    """Makes a library's loggers pass their messages on to the root logger instead of printing them."""
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == library]:
        logger = logging.getLogger(name)
        if logger.handlers:
            logger.handlers, logger.propagate = [], True


class _Teller(logging.Handler):
    def __init__(self, program: str, level: int) -> None:
        super().__init__()
        self._program, self._level = program, level
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit
            message = str(record.msg)
        if record.exc_info and record.exc_info[1] is not None:
            message += f" ({record.exc_info[1]})"
        is_noise = any(
            f"{record.name}.".startswith(f"{name}.") and re.match(beginning, message) for name, beginning in _NOISE
        )
        if not is_noise:
            self._tell(record.name.partition(".")[0], message, record.levelno)

    def take_over(self, record: logging.LogRecord) -> bool:
        """A filter for DeepSpeed's logger: it prints a warning or an error, and keeps every record from its handler."""
        if record.levelno >= logging.WARNING:
            self.emit(record)
        return False

    def tell_warning(self, message: Any, category: Any, filename: str, *_: Any, **__: Any) -> None:
        """Prints a Python warning; it replaces warnings.showwarning."""
        if issubclass(category, AdapterWarning):
            self._tell("note", str(message), logging.WARNING)
        else:
            self._tell(_library_of(filename), str(message), logging.WARNING)

    def _tell(self, who: str, message: str, level: int) -> None:
        text = " ".join(message.split())[:_LONGEST]
        # Messages below a warning appear only if the user asks for them (training.log_level, TORCH_LOGS and the like),
        # so they are printed.
        if (level < self._level and level >= logging.WARNING) or text in self._told:
            return
        self._told.add(text)
        with suppress(OSError, ValueError):  # stderr may be closed
            print(f"{self._program}: {who}: {text}", file=sys.stderr, flush=True)


def _library_of(filename: str) -> str:
    parts = Path(filename).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].removesuffix(".py")
    return "warning"
