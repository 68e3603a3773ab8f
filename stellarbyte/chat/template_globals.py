"""The functions that Transformers gives to chat templates besides Jinja's own."""

from typing import Any

from jinja2.exceptions import SecurityError, TemplateError
from jinja2.utils import Namespace


class TemplateDict:
    """`dict` as Transformers gives it to templates: a plain callable, because the type's attributes lead elsewhere."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Makes a dict of the arguments."""
        return dict(*args, **kwargs)


class TemplateNamespace(Namespace):
    """A namespace without names that begin with an underscore, as in Transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        """Sets an attribute, as `set` does in a template."""
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name}: it begins with an underscore")


def raise_exception(message: str) -> None:
    """Ends the rendering: the template refuses the conversation."""
    raise TemplateError(str(message))
