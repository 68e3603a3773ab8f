"""Reads the docstrings of a dataclass's fields: string literals under the fields in its source."""

import ast
import dataclasses
import inspect
import itertools
import textwrap


def field_docstrings(kind: type) -> dict[str, str]:
    """Field -> its docstring on one line, for the fields of a dataclass that have one, inherited ones included.

    A field without a docstring has the "help" of its metadata instead, as in PEFT and Transformers. The class that
    declares a field last decides.
    """
    docstrings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if "__dataclass_fields__" in vars(base):
            own, declared = _own_docstrings(base), vars(base).get("__annotations__", {})
            for name, field in vars(base)["__dataclass_fields__"].items():
                text = own.get(name) or (field.metadata.get("help") if name in declared else None)
                if text:
                    docstrings[name] = " ".join(text.split())
    return {field.name: docstrings[field.name] for field in dataclasses.fields(kind) if field.name in docstrings}


def first_sentence(text: str) -> str:
    """A docstring up to the end of its first sentence, on one line."""
    text = " ".join(text.split())
    end = next((i for i in range(len(text)) if text[i] == "." and text[i + 1 : i + 3].strip()[:1].isupper()), len(text))
    return text[: end + 1]


def _own_docstrings(kind: type) -> dict[str, str]:
    """The string literals under the fields that the class itself declares; empty if its source is not available."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    docstrings = {}
    for statement, below in itertools.pairwise(body):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            docstrings[statement.target.id] = inspect.cleandoc(below.value.value)
    return docstrings
