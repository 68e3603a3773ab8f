"""Runs the Jinja of Transformers' chat templates within bounds, and keeps every character's origin."""

import inspect
import json
import re
import threading
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import jinja2
from jinja2 import filters, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stellarbyte.chat.instrumented import Instrumented
from stellarbyte.chat.origins import Message, Rendering
from stellarbyte.chat.template_globals import TemplateDict, TemplateNamespace, raise_exception
from stellarbyte.chat.traced import Traced, TracingError, holds_traced, traced

# Filters that no chat template needs, and that take unbounded time or memory, or are random.
_WITHOUT = ("batch", "filesizeformat", "pprint", "random", "slice", "striptags", "urlize", "wordwrap", "xmlattr")

# Filters that write out a value or walk through all of it.
_WHOLE = frozenset(
    (
        *("capitalize", "center", "dictsort", "e", "escape", "forceescape", "format", "groupby", "indent", "join"),
        *("lower", "max", "min", "replace", "safe", "sort", "string", "sum", "title", "tojson", "trim", "truncate"),
        *("unique", "upper", "urlencode", "wordcount"),
    )
)


class _Mark(str):
    """An empty text that marks where a turn of a loop begins or the loop ends."""

    loop: int
    message: int | None

    def __str__(self) -> str:
        return self


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as Transformers sets it up: {% generation %}, break and continue, tojson without HTML entities.

    A template's steps and sizes are bounded, texts are Traced, and loops over messages mark their turns.
    """

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self) -> None:
        self._thread = threading.local()
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
        self.finalize = self._finalized
        for name in _WITHOUT:
            del self.filters[name]
        self.filters |= {"tojson": self._to_json, "join": self._joined, "indent": self._indented, "safe": _same}
        self.filters |= {"sum": _sum}
        self.filters = {name: self._bounded(name, function) for name, function in self.filters.items()}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": raise_exception, "dict": TemplateDict(), "namespace": TemplateNamespace}

    @property
    def rendering(self) -> Rendering:
        """The rendering in progress in this thread."""
        return self._thread.rendering

    def rendered(self, template: jinja2.Template, rendering: Rendering, **context: Any) -> Traced:
        """The text that a template makes of a context."""
        self._thread.rendering = rendering
        try:
            return traced(template.render(**context))
        finally:
            del self._thread.rendering

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return Instrumented().visit(super()._parse(source, name, filename))

    def concat(self, pieces: Iterable[str]) -> str:
        """One text of many; pieces between the marks of a loop over messages get the message of that turn."""
        rendering = self.rendering
        texts: list[Traced] = []
        loops: list[tuple[int, int | None]] = []
        length = 0
        for piece in pieces:
            if isinstance(piece, _Mark):
                loop = piece.loop
                while any(outer == abs(loop) for outer, _ in loops):
                    loops.pop()
                if loop > 0:
                    loops.append((loop, piece.message))
                continue
            if not piece:
                continue
            length += len(piece)
            rendering.bounds.check_length(length)
            inside = next((message for _, message in loops if message is not None), None)
            text = traced(piece)
            texts.append(text if inside is None else rendering.changed(text, inside=inside))
        return Traced("".join(texts), "".join(text.origins for text in texts))

    def entered(self, loop: int, item: Any) -> str:
        """Marks the beginning of a turn of a loop."""
        mark = _Mark()
        mark.loop = loop
        mark.message = item.number if isinstance(item, Message) else None
        return mark

    def left(self, loop: int) -> str:
        """Marks the end of a loop."""
        return self.entered(-loop, None)

    def made(self, value: Any) -> Any:
        """A list, tuple or object that a template makes, after checking its size."""
        self.rendering.bounds.check_size(value)
        return value

    def concatenated(self, values: list[Any]) -> str:
        """The result of the operator ~."""
        return self.concat([str(self._finalized(value)) for value in values])

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Makes a template's call, within bounds; methods of texts keep the origins."""
        bounds = __self.rendering.bounds
        bounds.step()
        text = getattr(__obj, "__self__", None)
        if isinstance(__obj, TemplateDict):
            return __self.made(super().call(__context, __obj, *args, **kwargs))
        if not isinstance(text, str):
            return super().call(__context, __obj, *args, **kwargs)
        name = __obj.__name__
        if name == "join" and len(args) == 1:
            args = (list(args[0]),)
            bounds.check_join(text, args[0])
        bounds.check_call(name, text, args, kwargs)
        if holds_traced(args) and name in vars(Traced):
            __obj = getattr(traced(text), name)
        result = super().call(__context, __obj, *args, **kwargs)
        return _still_traced(result, (text, args, kwargs), name)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes an operator, within bounds."""
        bounds = self.rendering.bounds
        bounds.step()
        bounds.check_operator(operator, left, right)
        if operator == "%" and isinstance(left, str):
            return _formatted(lambda values: str.__mod__(left, values), left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """A text's format method that is bounded and keeps the origins of texts."""
        if super().wrap_str_format(value) is None:
            return None
        text = value.__self__
        plain = getattr(str.__str__(text), value.__name__)
        call = super().wrap_str_format(plain)
        assert call is not None

        def wrapper(*args: Any, **kwargs: Any) -> str:
            self.rendering.bounds.check_format(text, [*args, *kwargs.values()])
            return _formatted(lambda values: call(*values[0], **values[1]), text, (args, kwargs))

        return wrapper

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute."""
        # Bytes have all of these methods again, without bounds; a translation may make any text long.
        return attr not in ("encode", "to_bytes", "translate", "origins") and super().is_safe_attribute(
            obj, attr, value
        )

    def _finalized(self, value: Any) -> Any:
        """A value in the form in which it is written; the text of a list keeps the origins of the words in it."""
        if isinstance(value, str | int | float | None):
            return value
        if isinstance(value, list | tuple | dict | set | frozenset):
            self.rendering.bounds.check_size(value)
            return self.rendering.written_out(value, str(value))
        return value

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The filter, made to count as a step, to check sizes, and to refuse losing texts' origins."""
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            bounds = self.rendering.bounds
            bounds.step()
            value, *others = args[skipped:]
            if name in _WHOLE:
                if not isinstance(value, str):
                    if not isinstance(value, list | tuple | dict | int | float | None | jinja2.Undefined):
                        value = list(value) if inspect.isgenerator(value) or isinstance(value, map | filter) else value
                    bounds.check_size(value)
                    args = (*args[:skipped], value, *others)
                bounds.check_call(name, value, tuple(others), kwargs)
            return _still_traced(function(*args, **kwargs), (value, others, kwargs), f"the filter {name}")

        return bounded

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter would write HTML's characters as entities.
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return self.rendering.written_out(value, text)

    def _joined(self, value: Any, d: str = "", attribute: str | int | None = None) -> str:
        items = list(value)
        if attribute is not None:
            items = list(map(filters.make_attrgetter(self, attribute), items))
        texts = [str(self._finalized(item)) for item in items]
        self.rendering.bounds.check_join(d, texts)
        return traced(str(d)).join(texts)

    def _indented(self, s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        indention = traced(width if isinstance(width, str) else " " * width)
        first_line, *lines = (traced(str(s)) + "\n").splitlines()
        rest = [indention + line if line or blank else line for line in lines]
        return traced("\n").join([indention + first_line if first else first_line, *rest])


class _GenerationBlock(Extension):
    """{% generation %}…{% endgeneration %}, which is a scope of its own, as in Transformers."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja wants it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        assert isinstance(self.environment, Sandbox)
        rendering = self.environment.rendering
        text = traced(caller())
        rendering.blocks += 1
        return rendering.changed(text, block=rendering.blocks)


# While Python formats something, characters that no text may hold stand for traced texts.
_FIRST_STAND_IN = 0x10F000
_STAND_IN = re.compile("([\U0010f000-\U0010ffff])")
_PLAIN_FORMAT = re.compile(r"(?:%(?:\(\w+\))?[sd%]|[^%{}]|\{\{|\}\}|\{\w*\})*")


def _formatted(form: Callable[[Any], str], text: str, values: Any) -> str:
    """The result of a format, in which the traced texts among `values` keep their origins."""
    if holds_traced(text) or (holds_traced(values) and not _PLAIN_FORMAT.fullmatch(text)):
        raise TracingError("a format with widths")
    found: list[Traced] = []

    def stand_in(value: Any) -> Any:
        if isinstance(value, Traced):
            found.append(value)
            return chr(_FIRST_STAND_IN + len(found) - 1)
        if isinstance(value, tuple):
            return tuple(map(stand_in, value))
        return {key: stand_in(item) for key, item in value.items()} if isinstance(value, dict) else value

    pieces: list[str] = _STAND_IN.split(form(stand_in(values)))
    pieces[1::2] = [found[ord(piece) - _FIRST_STAND_IN] for piece in pieces[1::2]]
    return traced("").join(pieces)


def _still_traced(result: Any, values: Any, what: str) -> Any:
    if isinstance(result, str) and result and not isinstance(result, Traced) and holds_traced(list(values)):
        raise TracingError(what)
    return result


def _same(value: Any) -> Any:
    return value


def _sum(values: Iterable[Any], attribute: None = None, start: float = 0) -> Any:
    if attribute is not None or not isinstance(start, int | float):
        raise TypeError("sum adds numbers")
    return sum(values, start)
