"""Where the three programs begin: each hears of signals before anything is imported that takes time."""

from importlib import import_module

from stellarbyte.command_line import run_program


def pretraining() -> None:
    """`stellarbyte`: text, training and what follows in JAX."""
    _enter("stellarbyte", "stellarbyte_jax.cli")


def showroom() -> None:
    """`stellarbyte-torch`: a Hugging Face user's side."""
    _enter("stellarbyte-torch", "stellarbyte_torch.cli")


def bridge() -> None:
    """`stellarbyte-convert`: from one to the other."""
    _enter("stellarbyte-convert", "convert.cli")


def _enter(program: str, module: str) -> None:
    run_program(program, lambda: import_module(module).main())
