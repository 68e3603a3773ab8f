"""What libraries say while a command runs: each warning is told once, in our own form; what is noise stands here."""

import logging
import re
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from stellarbyte.adapter_base import AdapterWarning

# What is dropped: by whose logger, and how it begins.
_NOISE = (
    # torchao, which transformers imports wherever it is there, tells of each kernel that is for another machine, and
    # registers its enums with torch in a way that torch will give up.
    ("torchao", r"Skipping import of cpp|Failed to load |Warning: Detected no triton"),
    # DeepSpeed, which accelerate imports wherever it is there, tells that it has found no GPU.
    ("DeepSpeed", r"Setting accelerator to CPU"),
    ("torch.utils._pytree", r"<enum '\w+'> is an Enum subclass and is now natively supported"),
    # Of an old config, such as GPT-2's: the default loss is the one that we train by.
    ("transformers", r"`loss_type=None` was set in the config but it is unrecognized"),
)
# As above, of what goes by Python's warnings.
_NOISY_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    # Python compiles what an installer did not, and finds fault with strings in torchao.
    (SyntaxWarning, ""),
    # PEFT asks transformers in its old words.
    (FutureWarning, r"`is_gradient_checkpointing` is deprecated"),
    # DeepSpeed and accelerate ask torch in its old words.
    (FutureWarning, r"`torch\.distributed\.\w+` is deprecated"),
    # PEFT warns of letters such as "a", which do no harm; names that do are refused by us.
    (UserWarning, r"Adapter name .* should not be contained in the prefix"),
    # PEFT looks among modules alone, where a pattern may be for a parameter; what fits neither is refused by us.
    (RuntimeWarning, r"The following (rank|alpha)_pattern keys did not match any targeted module"),
)
_LONGEST = 1000


def hear_libraries(program: str, *, speaks: bool = True) -> None:
    """From here on warnings and errors of all libraries are lines such as "program: transformers: …", each once.

    They go to whatever stderr is at the time, which a progress display keeps for its own while it lives. Libraries'
    progress bars, which would tear that, are off. Of several processes the one that `speaks` tells warnings, and each
    its errors.
    """
    for category, beginning in _NOISY_WARNINGS:
        warnings.filterwarnings("ignore", message=beginning, category=category)
    teller = _Teller(program, logging.WARNING if speaks else logging.ERROR)
    for handler in [handler for handler in logging.root.handlers if isinstance(handler, _Teller)]:
        logging.root.removeHandler(handler)
    logging.root.addHandler(teller)
    # It comes later, gives its logger a handler that writes to stdout, and lets nothing pass on.
    deepspeed = logging.getLogger("DeepSpeed")
    deepspeed.filters = [teller.take_over]
    warnings.showwarning = teller.tell_warning

    import torch  # noqa: F401 - gives its loggers handlers of their own

    _give_to_root("torch")
    from transformers.utils import logging as transformers_logging

    _give_to_root("transformers")
    transformers_logging.disable_progress_bar()


def _give_to_root(library: str) -> None:
    """Let a library's loggers pass on what they say instead of saying it themselves."""
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
        """A filter that tells a record of DeepSpeed's, if it is a warning, and keeps it from its own handler."""
        if record.levelno >= logging.WARNING:
            self.emit(record)
        return False

    def tell_warning(self, message: Any, category: Any, filename: str, *_: Any, **__: Any) -> None:
        """In the place of warnings.showwarning."""
        if issubclass(category, AdapterWarning):
            self._tell("note", str(message), logging.WARNING)
        else:
            self._tell(_library_of(filename), str(message), logging.WARNING)

    def _tell(self, who: str, message: str, level: int) -> None:
        text = " ".join(message.split())[:_LONGEST]
        # What is below a warning, a user has asked for: by training.log_level, TRANSFORMERS_VERBOSITY or TORCH_LOGS.
        if (level < self._level and level >= logging.WARNING) or text in self._told:
            return
        self._told.add(text)
        with suppress(OSError, ValueError):  # nobody is there to read it
            print(f"{self._program}: {who}: {text}", file=sys.stderr, flush=True)


def _library_of(filename: str) -> str:
    parts = Path(filename).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].removesuffix(".py")
    return "warning"
