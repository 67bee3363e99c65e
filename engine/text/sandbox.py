"""Sandbox for chat templates. They are programs of strangers: Jinja's own sandbox, and for each thread a limit
on time and on the characters that a template makes."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MappingView, Sequence, Sized
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

CHARACTERS = 2**25  # in all values that are made, and in the output
EACH = 64  # more for each character of the messages
SECONDS = 2.0  # of the thread's own time, for CHARACTERS
ITEM = 64  # characters that a value counts for beside its text
LOOK = 16 * ITEM  # characters between two looks at the clock
BITS = 2**14  # of an integer
INDENT = 16  # of JSON
WIDE = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*(\d{5}|\*)|\{[^{}]*:[^{}]*(\d{5}|\{)")
WIDTH = 9_999  # of a field in a format: WIDE finds the wider ones, and those that are arguments
SLOW = {"pprint", "striptags", "urlize", "wordwrap", "xmlattr"}  # filters that no chat needs
HIDDEN = {"encode", "expandtabs", "maketrans", "striptags", "to_bytes", "translate"}  # methods
FREE = {"count", "d", "default", "first", "last", "length", "test"}  # filters that make nothing
GROWING = {"format", "indent", "replace"}  # filters whose result may be far longer than the text


class _Left(threading.local):
    """Characters and time that one thread's template may still take."""

    characters = CHARACTERS
    look = CHARACTERS  # where to look at the clock
    end = float("inf")  # by `time.thread_time`


_left = _Left()


@contextmanager
def limited(messages: object = ()) -> Iterator[None]:
    """Give a template time and characters for these messages; more raises `jinja2.TemplateError`."""
    _left.characters = 2**62
    _left.characters = _left.look = CHARACTERS + EACH * _size(messages)
    _left.end = time.thread_time() + SECONDS * _left.characters / CHARACTERS
    try:
        yield
    finally:
        _left.characters, _left.look, _left.end = CHARACTERS, CHARACTERS, float("inf")


def _charge(characters: int) -> None:
    _left.characters -= characters
    if _left.characters >= _left.look:
        return
    _left.look = _left.characters - LOOK
    if _left.characters < 0 or time.thread_time() > _left.end:
        raise jinja2.TemplateRuntimeError("the template takes too much time or memory")


def _size(value: object) -> int:
    """Characters of a value and of all that it holds, counted no further than what is left."""
    if isinstance(value, str):  # as mostly
        return ITEM + len(value)
    total, waiting = 0, [value]
    while waiting and total <= _left.characters:
        item = waiting.pop()
        total += ITEM
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, int):
            if item.bit_length() > BITS:
                raise jinja2.TemplateRuntimeError(f"an integer has more than {BITS} bits")
        elif isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset | MappingView):
            waiting += item  # type: ignore[arg-type]
    return total


def _made(value: Any) -> Any:
    """A value that is made; those of an iterator one by one."""
    if isinstance(value, Iterator):
        return map(_made, value)
    _charge(_size(value))
    return value


@pass_context  # else constants would be written while the template is compiled, without limits
def _written(_: Context, value: Any) -> Any:
    return _made(value)


def _seen(value: Any, characters: int = ITEM) -> Any:
    """A value that is used, or the start of a body that writes so much text of the template's own."""
    _charge(characters)
    return value


def _slice(value: Any) -> Any:
    """A part of a text or a list: what a list holds is not made anew."""
    if isinstance(value, Sized):
        _charge(len(value) * (1 if isinstance(value, str) else ITEM))
    return value


def _growth(name: str, text: str, given: Sequence[Any]) -> int:
    """Characters that a filter, or a method of a text, may make at most beside what it is given."""
    numbers = sum(abs(x) for x in given if isinstance(x, int))
    match name, given:
        case (("format" | "format_map" | "%"), _):
            if WIDE.search(text):
                raise jinja2.TemplateRuntimeError(f"a format is wider than {WIDTH}")
            return (text.count("%") + text.count("{")) * (WIDTH + _size(given))
        case "replace", _:
            parts = _texts(given)  # named ones may come in another order
            return max((text.count(a) * len(b) for a in parts for b in parts), default=0)
        case "round", _:
            return numbers**2
        case "sum", _ if any(isinstance(x, Sized) and not isinstance(x, str) for x in given):
            raise jinja2.TemplateRuntimeError("sum adds numbers")
        case "join", [Sized() as values, *_]:
            return len(text) * len(values) + _size(values)
        case "indent", _:
            return (text.count("\n") + 1) * (numbers + sum(map(len, _texts(given))))
    return numbers


def _texts(given: Sequence[Any]) -> list[str]:
    """Return the texts that a filter writes of its arguments, but for numbers; charge their characters."""
    _charge(_size(list(given)))
    return [x if isinstance(x, str) else str(x) for x in given if not isinstance(x, int | None)]


def _within(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    first = int(hasattr(function, "jinja_pass_arg"))  # the value comes after the context

    @wraps(function)
    def run(*given: Any, **named: Any) -> Any:
        value, *others = *given[first:], *named.values()
        text = str(value) if name in GROWING else ""
        if name == "join":
            value = list(value)
            given = (*given[:first], value, *given[first + 1 :])
            text, others = max(_texts(others), key=len, default=""), [value]
        _charge(ITEM + (_growth(name, text, others) if others else 0))
        result = function(*given, **named)
        return result if name in FREE else _made(result)

    return run


class _Limiting(NodeTransformer):
    """Puts the limits into a template, in filters with names that no template can write."""

    def generic_visit(self, node: Any, *args: Any, **named: Any) -> Any:
        super().generic_visit(node, *args, **named)
        match node:
            # may run many times
            case nodes.For() | nodes.Macro() | nodes.CallBlock() | nodes.Block():
                if isinstance(node, nodes.For) and node.test is not None:
                    node.test = _put("seen!", node.test)
                own = ITEM + sum(len(text.data) for text in node.find_all(nodes.TemplateData))
                start = _put("seen!", nodes.Const(None, lineno=node.lineno), own)
                node.body.insert(0, nodes.ExprStmt(start, lineno=node.lineno))
            case nodes.Concat():
                node.nodes = [_put("made!", part) for part in node.nodes]
            case nodes.Compare():
                node.expr = _put("seen!", node.expr)
            case nodes.Getitem():
                return _put("slice!" if isinstance(node.arg, nodes.Slice) else "seen!", node)
            case nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load"):
                return _put("made!", node)
        return node


def _put(name: str, value: Any, *given: int) -> nodes.Filter:
    constants: list[nodes.Expr] = [nodes.Const(x, lineno=value.lineno) for x in given]
    return nodes.Filter(value, name, constants, [], None, None, lineno=value.lineno)


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; a prompt takes only its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Written, it hides what it holds: two may hold each other, many times over."""

    def __repr__(self) -> str:
        return "<Namespace>"


class Sandbox(ImmutableSandboxedEnvironment):
    """transformers' dialect of Jinja: no private attributes, no changes to what it is given, and limits."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # what is worked out while it is compiled would not be limited
            finalize=_written,
            extensions=[loopcontrols, _GenerationTag],
        )
        usual: dict[str, Any] = {**self.filters, "tojson": _tojson}
        self.filters = {n: _within(n, each) for n, each in usual.items() if n not in SLOW}
        self.filters |= {"seen!": _seen, "slice!": _slice, "made!": _made}
        tests: dict[str, Any] = self.tests
        self.tests = {name: _within("test", each) for name, each in tests.items()}
        del self.globals["lipsum"], self.globals["cycler"]
        self.globals["namespace"] = _Namespace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        hidden = isinstance(obj, str | bytes | int) and attr in HIDDEN
        return not hidden and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, called: Any, /, *given: Any, **named: Any) -> Any:
        method = getattr(called, "__wrapped__", called)  # the sandbox has its own for str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            given = tuple(list(x) if isinstance(x, Iterator) else x for x in given)
            _charge(len(owner) + _growth(name, owner, [*given, *named.values()]))
        _charge(_size([given, named]))
        return _made(super().call(context, called, *given, **named))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            if operator == "**" and left.bit_length() * abs(right) > BITS:
                raise jinja2.TemplateRuntimeError(f"an integer has more than {BITS} bits")
        elif operator == "*" and (isinstance(left, int) or isinstance(right, int)):
            times, whole = (left, right) if isinstance(left, int) else (right, left)
            _charge(max(0, times) * (_size(whole) - ITEM))
        elif operator == "%" and isinstance(left, str):
            _charge(_growth(operator, left, [right]))
        return _made(super().call_binop(context, operator, left, right))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Limiting().visit(super()._parse(source, name, filename))
        return template.set_environment(self)  # type: ignore[return-value]


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter writes < as \u003c, for HTML.
    if indent not in (None, *range(INDENT + 1)):
        raise jinja2.TemplateRuntimeError(f"the indent of JSON is not from 0 to {INDENT}")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    parts = [encoder.encode(value)] if indent is None else encoder.iterencode(value)
    return "".join(map(_made, parts))


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
