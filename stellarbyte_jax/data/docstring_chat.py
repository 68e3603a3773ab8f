"""Makes conversations of the standard library's docstrings, about what something is for and how it is called."""

import ast
from collections.abc import Iterator
from pathlib import Path

from stellarbyte_jax.data.corpus import stdlib_sources, write_records

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Message = dict[str, str]

# A few answers in a hundred are longer, and would fill most of a small model's context.
_LONGEST_ANSWER = 600

# Programs that come with the library; nobody asks how their inner functions are called.
_PROGRAMS = frozenset({"idlelib", "lib2to3", "turtledemo"})


def write_stdlib_chat(path: str | Path, *, force: bool = False) -> tuple[int, int]:
    """Writes conversations about this machine's standard library as {"messages", "path"} lines, the same every time.

    An answer is the first paragraph of a docstring, or a signature, as the source has it. Questions are only about
    public names that have a docstring. Returns (number of conversations, number of question/answer pairs).

    Raises:
        UserError: this machine has the library without its sources, or write_records refuses the file.
    """
    pairs = 0

    def records() -> Iterator[dict[str, object]]:
        nonlocal pairs
        for file, text in stdlib_sources():
            for messages in conversations(file, text):
                pairs += len(messages) // 2
                yield {"path": file, "messages": messages}

    count = write_records(path, records(), force=force)
    return count, pairs


def conversations(file: str, source: str) -> Iterator[list[_Message]]:
    """Conversations about a source file, `file` relative to the library, in the order of its definitions."""
    module = _module_name(file)
    if module is None:
        return
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a template or a deliberate mistake
        return
    answer = _first_paragraph(tree)
    if answer is not None:
        yield _turn(f"What is the module `{module}` for?", answer)
    yield from _about_body(tree.body, module, in_class=False)


def _module_name(file: str) -> str | None:
    """The name by which a public module is imported; None for others."""
    parts = file.removesuffix(".py").split("/")
    if parts[0] in _PROGRAMS:
        return None
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts) if parts and all(map(_is_public, parts)) else None


def _is_public(name: str) -> bool:
    return name.isidentifier() and not name.startswith("_")


def _about_body(body: list[ast.stmt], prefix: str, *, in_class: bool) -> Iterator[list[_Message]]:
    seen: set[str] = set()
    for node in _definitions(body):
        # Only the first of several definitions counts: the getter of a property, the usual branch of an `if`.
        if not _is_public(node.name) or node.name in seen:
            continue
        seen.add(node.name)
        name = f"{prefix}.{node.name}"
        answer = _first_paragraph(node)
        if isinstance(node, ast.ClassDef):
            if answer is not None:
                yield _turn(f"What is the class `{name}`?", answer) + _how_created(node)
            yield from _about_body(node.body, name, in_class=True)
        elif answer is not None:
            if _decorators(node) & {"property", "cached_property", "abstractproperty"}:
                yield _turn(f"What is the property `{name}`?", answer)
            else:
                kind = "method" if in_class else "function"
                yield _turn(f"What does the {kind} `{name}` do?", answer) + _how_called(node, in_class=in_class)


def _definitions(body: list[ast.stmt]) -> Iterator[_Function | ast.ClassDef]:
    """The functions and classes in a module or class, also those inside `if` and `try`, but not inside functions."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node
        elif isinstance(node, ast.If):
            yield from _definitions(node.body + node.orelse)
        elif isinstance(node, ast.Try):
            handlers = [statement for handler in node.handlers for statement in handler.body]
            yield from _definitions(node.body + handlers + node.orelse + node.finalbody)


def _first_paragraph(node: ast.Module | ast.ClassDef | _Function) -> str | None:
    """The first paragraph of a docstring in one line; None if it would not answer a question."""
    lines = (ast.get_docstring(node) or "").split("\n\n")[0].splitlines()
    # Indented lines, examples and underlined titles are not prose. After a final colon the rest would be missing.
    if any(line.startswith((" ", ">>>", "---", "===")) for line in lines):
        return None
    paragraph = " ".join(" ".join(lines).split())
    # A text that starts with a small letter is a signature or a usage line, such as dumps(obj) -> str.
    if not paragraph[:1].isupper() or paragraph.endswith(":") or " " not in paragraph:
        return None
    if paragraph.startswith("Internal"):  # public by its name only
        return None
    return paragraph if len(paragraph) <= _LONGEST_ANSWER else None


def _how_called(node: _Function, *, in_class: bool) -> list[_Message]:
    arguments = node.args
    if in_class and "staticmethod" not in _decorators(node):
        arguments = _without_first(arguments)
    call = f"{node.name}({ast.unparse(arguments)})"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return _signature_turn("How is it called?", call + returns)


def _how_created(node: ast.ClassDef) -> list[_Message]:
    for method in _definitions(node.body):
        if method.name == "__init__" and not isinstance(method, ast.ClassDef):
            return _signature_turn("How is it created?", f"{node.name}({ast.unparse(_without_first(method.args))})")
    return []


def _without_first(arguments: ast.arguments) -> ast.arguments:
    """The arguments without self or cls, which a call does not name."""
    rest = ast.arguments(**dict(ast.iter_fields(arguments)))
    if rest.posonlyargs:
        rest.posonlyargs = rest.posonlyargs[1:]
    else:
        rest.args = rest.args[1:]
    # Defaults belong to the last arguments; if there is one too many, it was the default of self.
    rest.defaults = rest.defaults[-len(rest.posonlyargs + rest.args) :] if rest.posonlyargs + rest.args else []
    return rest


def _decorators(node: _Function) -> set[str]:
    return {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}


def _signature_turn(question: str, call: str) -> list[_Message]:
    return _turn(question, f"`{call}`") if len(call) <= _LONGEST_ANSWER else []


def _turn(question: str, answer: str) -> list[_Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
