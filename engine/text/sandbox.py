"""Where chat templates run: programs of strangers, with a limit on their work, memory and output."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sized
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

WORK = 2**25  # characters read, made or written; so many take a second or two
WORK_EACH = 64  # more for each character of the messages
LOOK = 2**12  # work between two looks at the clock
SECONDS = 8.0  # of the thread's own time for WORK: an end where the count misses something
ITEM = 64  # characters that an item of a list or a round of a loop counts for; a call is two
OUTPUT = 16  # that a value counts for when it is written, however short
NODE = 4  # that each node of a body counts for, each time that it runs
BITS = 2**14  # of an integer
WIDTH = 9_999  # widest field in a format
WIDE = re.compile(r"%[^a-zA-Z%]*\d{5}|\{[^{}]*:[^{}]*\d{5}")
ASKED = re.compile(r"%[^a-zA-Z%]*\*|\{[^{}]*:[^{}]*\{")  # widths that are arguments

DROPPED = (
    "pprint",
    "striptags",
    "urlize",
    "wordwrap",
    "xmlattr",
)  # slow in Python, and no template of a chat
HIDDEN = {"encode", "maketrans", "striptags", "translate"}  # methods of texts, for the same reason
FREE = {
    "count",
    "d",
    "default",
    "first",
    "last",
    "length",
}  # filters that look at no more than an end
MULTIPLY = {"indent", "join", "replace", "tojson"}  # filters
FILL = {"batch", "center", "slice", "truncate"}
EACH_LETTER = {
    *("batch", "groupby", "join", "list", "map", "max", "min", "random", "reject", "rejectattr"),
    *("select", "selectattr", "slice", "sort", "sum", "unique"),
}
LINEAR_TESTS = {"in", "lower", "upper"}  # and those of Python's operators


PLAIN = {str, int, float, bool, type(None), jinja2.Undefined}  # values that hold no others


class _Left(threading.local):
    """What is left of the work that one thread's template may still do."""

    amount = WORK
    look = WORK  # where to look at the clock
    end = float("inf")  # by `time.thread_time`


_left = _Left()


@contextmanager
def limited(messages: object = ()) -> Iterator[None]:
    """Give a template the work for these messages; more raises `jinja2.TemplateError`."""
    _left.amount = 2**62
    _left.amount = WORK + WORK_EACH * _weight(messages)
    _left.look = _left.amount
    _left.end = time.thread_time() + SECONDS * _left.amount / WORK
    try:
        yield
    finally:
        _left.amount = _left.look = WORK
        _left.end = float("inf")


def _charge(amount: int) -> None:
    _left.amount -= amount
    if _left.amount >= _left.look:
        return
    _left.look = max(0, _left.amount - LOOK)
    if _left.amount < 0 or time.thread_time() > _left.end:
        raise jinja2.TemplateRuntimeError("the template takes too much time or memory")


def _weight(value: object) -> int:
    """Characters and items in a value, counted no further than what is left."""
    if isinstance(value, str):
        return len(value) + 1
    if type(value) in PLAIN:
        return 1
    if isinstance(value, range):
        return len(value) + 1
    total, waiting = 0, [value]
    while waiting and total <= _left.amount:
        item = waiting.pop()
        if isinstance(item, Namespace):
            item = object.__getattribute__(item, "_Namespace__attrs")  # it hides them
        total += len(item) if isinstance(item, str | bytes) else 1
        if type(item) in PLAIN:
            continue
        if isinstance(item, dict | Mapping):
            waiting += [*item.keys(), *item.values()]
            total += ITEM * len(item)
        elif isinstance(item, list | tuple | set | frozenset | MappingView):
            waiting += item  # type: ignore[arg-type]
            total += ITEM * len(item)
        elif isinstance(item, range):
            total += len(item)
    return total


def _format_cost(form: str, arguments: object) -> int:
    """Of a text that arguments are put into."""
    if WIDE.search(form):
        raise jinja2.TemplateRuntimeError(f"a format is wider than {WIDTH}")
    numbers = _numbers(arguments) if ASKED.search(form) else 0
    fields = form.count("%") + form.count("{")
    return len(form) + fields * (WIDTH + _weight(arguments) + numbers)


def _numbers(values: object) -> int:
    """The sum of the integers among arguments, positive or not."""
    each = values.values() if isinstance(values, Mapping) else values
    each = each if isinstance(each, Iterable) and not isinstance(each, str) else [each]
    return sum(abs(value) for value in each if isinstance(value, int))


def _call_cost(called: object, arguments: list[Any]) -> int:
    """What a call may cost at most beside its arguments and its result."""
    called = getattr(called, "__wrapped__", called)  # the sandbox has its own for str.format
    owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
    if not isinstance(owner, str):
        return _weight(owner) if isinstance(owner, list | tuple | Mapping) else 0
    match name:
        case "replace":
            return (len(owner) + 1) * sum(len(x) for x in arguments if isinstance(x, str))
        case "join":
            return len(owner) * sum(len(x) for x in arguments if isinstance(x, Sized))
        case "center" | "ljust" | "rjust" | "zfill":
            return len(owner) + _numbers(arguments)
        case "expandtabs":
            return len(owner) * (8 + _numbers(arguments))
        case "format" | "format_map":
            return _format_cost(owner, arguments)
    return len(owner)


def _filter_cost(name: str, value: object, arguments: list[Any]) -> int:
    weight = _weight(value)
    if name == "format":
        return _format_cost(str(value), arguments)
    if name in MULTIPLY:
        texts = sum(len(x) for x in arguments if isinstance(x, str))
        many = len(value) if name == "join" and isinstance(value, Sized) else weight
        weight += many * (texts + _numbers(arguments))
    elif name in FILL:
        weight += _numbers(arguments)
    elif name == "round":
        weight += _numbers(arguments) ** 2  # a power of ten with so many digits
    return weight * ITEM if isinstance(value, str | range) and name in EACH_LETTER else weight


def _charged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or a test that counts its work."""
    if name in FREE:
        return function
    first = int(hasattr(function, "jinja_pass_arg"))  # the value comes after the context

    @wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        value = arguments[first] if len(arguments) > first else ""
        if name == "join" and not isinstance(value, Sized):
            value = list(value)
            arguments = (*arguments[:first], value, *arguments[first + 1 :])
        _charge(2 * ITEM + _filter_cost(name, value, [*arguments[first + 1 :], *named.values()]))
        result = function(*arguments, **named)
        if isinstance(result, Iterator):
            return _counted(result)
        if isinstance(result, int) and result.bit_length() > BITS:
            raise jinja2.TemplateRuntimeError(f"an integer has more than {BITS} bits")
        _charge(_weight(result))
        return result

    return run


@pass_context
def _seen(_context: Context, value: Any) -> Any:
    """A value that is made or compared."""
    _charge(_weight(value))
    return value


@pass_context
def _cut(_context: Context, value: Any) -> Any:
    """A value of which a slice is taken."""
    if isinstance(value, Sized):
        _charge(len(value) * (1 if isinstance(value, str) else ITEM))
    return value


@pass_context
def _joined(_context: Context, values: list[Any]) -> str:
    """`a ~ b`."""
    _charge(_weight(values))
    return "".join(map(str, values))


@pass_context
def _rounds(_context: Context, values: Any) -> Any:
    """What a loop goes through."""
    if isinstance(values, Sized):
        _charge(ITEM * len(values))
        return values
    return _counted(values)


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _charge(ITEM + _weight(value))
        yield value


@pass_context
def _spent(_context: Context, amount: int) -> None:
    """A body of a loop or a macro runs: so many nodes, and so much text of the template's own."""
    _charge(amount)


@pass_context
def _written(_context: Context, value: Any) -> str:
    """A value that is written."""
    _charge(OUTPUT + _weight(value))
    text = str(value)
    _charge(len(text))
    return text


OURS = {"seen!": _seen, "cut!": _cut, "joined!": _joined, "rounds!": _rounds, "spent!": _spent}


class _Counting(NodeTransformer):
    """Puts OURS into a template. Templates cannot write names that end in "!"."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        node.iter = _filter("rounds!", node.iter)
        return self.visit_Macro(node)  # type: ignore[no-any-return]

    def visit_Macro(self, node: Any) -> Any:
        """What has a body that may run many times."""
        self.generic_visit(node)
        own = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
        own += NODE * sum(1 for _ in node.find_all(nodes.Node))
        counted = _filter("spent!", nodes.Const(own, lineno=node.lineno))
        node.body.insert(0, nodes.ExprStmt(counted, lineno=node.lineno))
        return node

    visit_CallBlock = visit_Block = visit_Macro

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter("joined!", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        places: list[Any] = [node, *node.ops]
        for place in places:
            if not isinstance(place.expr, nodes.Const):
                place.expr = _filter("seen!", place.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filter("cut!", node.node)
        return node

    def visit_List(self, node: Any) -> nodes.Expr:
        self.generic_visit(node)
        parts = node.iter_child_nodes()
        plain = all(isinstance(part, nodes.Const) for part in parts)
        return node if plain or getattr(node, "ctx", "load") != "load" else _filter("seen!", node)

    visit_Tuple = visit_Dict = visit_List


def _filter(name: str, value: Any) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)


class _GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}` marks the assistant's words for training; a
    prompt takes only its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """transformers' dialect of Jinja: no private attributes, no changes to what it is given, and no
    work without end. All that takes more than a moment is counted before it is done, see `limited`."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # what is worked out while it is compiled would not be counted
            finalize=_written,
            extensions=[loopcontrols, _GenerationTag],
        )
        self.filters["tojson"] = _tojson
        kept: dict[str, Any] = {n: each for n, each in self.filters.items() if n not in DROPPED}
        self.filters = {name: _charged(name, each) for name, each in kept.items()} | OURS
        test: Any
        for name, test in self.tests.items():
            if name in LINEAR_TESTS or test.__module__ == "_operator":
                self.tests[name] = _charged(name, test)
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        hidden = isinstance(obj, str | bytes) and attr in HIDDEN
        return not hidden and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Context, called: Any, /, *arguments: Any, **named: Any) -> Any:
        """A call in a template."""
        if getattr(called, "__name__", "") == "join" and isinstance(called.__self__, str):
            arguments = tuple(x if isinstance(x, Sized) else list(x) for x in arguments)
        if isinstance(called, LoopContext):  # a recursive one
            arguments = tuple(_rounds(context, x) for x in arguments)
        given = [*arguments, *named.values()]
        _charge(2 * ITEM + sum(map(_weight, given)) + _call_cost(called, given))
        result = super().call(context, called, *arguments, **named)
        _charge(_weight(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator of arithmetic in a template."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length()
            if operator == "**":
                bits = left.bit_length() * abs(right)
            if bits > BITS:
                raise jinja2.TemplateRuntimeError(f"an integer has more than {BITS} bits")
        elif operator == "*" and (isinstance(left, int) or isinstance(right, int)):
            times, whole = (left, right) if isinstance(left, int) else (right, left)
            _charge(_weight(whole) * max(0, times))
        elif operator == "%" and isinstance(left, str):
            _charge(_format_cost(left, right))
        else:
            _charge(_weight(left) + _weight(right))
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return template.set_environment(self)  # type: ignore[return-value]


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter writes < as \u003c, for HTML.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
