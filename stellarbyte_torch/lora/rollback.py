"""Puts a model back as it was when putting an adapter on it fails half-way."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def unchanged_on_failure(model: nn.Module) -> Iterator[None]:
    """If the block raises, every module gets back the children, parameters and settings that it had before.

    Tensors are kept, not copied: values that the block writes into them in place stay.
    """
    modules = [(module, dict(vars(module))) for module in model.modules()]
    held = {id(value): value for _, attributes in modules for value in attributes.values() if _is_container(value)}
    contents = [(value, copy.copy(value)) for value in held.values()]
    parameters = [(parameter, parameter.data, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        # In place, because handles of hooks refer to the very dict that holds them.
        for module, attributes in modules:
            vars(module).clear()
            vars(module).update(attributes)
        for value, before in contents:
            value.clear()
            value.extend(before) if isinstance(value, list) else value.update(before)
        for parameter, data, requires_grad in parameters:
            parameter.data = data
            parameter.requires_grad = requires_grad
        raise


def _is_container(value: Any) -> bool:
    return isinstance(value, dict | list | set)
