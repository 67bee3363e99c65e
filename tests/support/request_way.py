"""The way of a request through the code, as its real calls show it: hand-overs between files, and its forms."""

import dis
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from msgspec import Struct
from pydantic import BaseModel

from fastslow.output import Completion, Output, Piece

PROMPT, OPTION, ANSWER = "prompt", "option", "answer"
WHOLE = frozenset({PROMPT, OPTION})
STEP, GIVEN = "EngineCore.step", "Worker.submit"
AROUND = "serve/http/middleware.py"
LAST = b"[DONE]"
ENGINE = ("engine/", "draft/", "policies/")
DEEP = 8
ROOT = Path(__file__).parents[2]
ROOMS = re.compile(r"^fastslow/(?=(engine|draft|policies|serve|tools)/)")
Held = frozenset[str]
NOTHING: Held = frozenset()


@contextmanager
def profiled(note: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    """Every call and return, in this thread and in all that begin inside."""
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def file_of(frame: FrameType | None) -> str:
    """The file of ours that a frame is in, as its room calls it; "" where it is not ours."""
    return own_name(frame.f_code.co_filename) if frame is not None else ""


@cache
def own_name(file: str) -> str:
    path = Path(file)
    if ROOT not in path.parents:
        return ""
    return ROOMS.sub("", path.relative_to(ROOT).as_posix())


@dataclass(frozen=True)
class Asked:
    """What a request is known by, wherever it goes: a text of its prompt, that prompt's tokens, and its seed."""

    text: str
    tokens: Sequence[int]
    seed: int
    route: str  # the function that gets it


@dataclass
class Call:
    """A call of a function of ours that may hand a request over."""

    file: str
    function: str
    order: int
    held: Held = NOTHING  # by its arguments
    own: bool = False  # by no argument but the form whose method it is
    bytes: bool = False  # it was given some
    said: frozenset[str] = frozenset()  # the texts of the answer's pieces that it was given
    passed_on: bool = False  # inside of it the request was handed over


class RequestWay:
    """Follows one request from a route to the engine's step, and its answer back to the events.

    A *hop* is an arrow from a file to another one, by which the request goes on: a function of the first calls one of
    the second, directly or through a library. It gives it the request whole, prompt and options, in one argument or in
    several, or an object that was made for this request and holds it. The call returns nothing, or the request again,
    in whatever form; or it hands the request over in its turn. What returns anything else was only asked something, and
    is no hop. On the way back the same holds for pieces of the answer: given to a function, or returned by it. Bytes
    that come from the other process are a hop, too. Between two files an arrow counts once, for the call and what comes
    back from it. A form's own methods are no other place, unless they hand it over. The step itself is the engine's.

    A *form* is a class of ours whose objects hold the whole request: in their fields, or in what lies there in lists,
    dicts and values (dataclasses, NamedTuples, Structs, models), at any depth. Another class is one where it holds
    prompt and options itself; what only points to a form, as a handle or a stream does, is none.
    """

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._calls: dict[FrameType, Call] = {}
        self._made: dict[int, object] = {}  # since the request came
        self._begun = self._submitted = self._back = self._over = False
        self._sender = ""  # the file that wrote the last message
        self._mine = threading.local()
        self._hops: dict[tuple[str, str], Call] = {}
        self.forms: set[str] = set()
        self.parts: set[str] = set()  # classes that hold the prompt or an option, and not both

    @property
    def hops(self) -> list[tuple[str, str, str]]:
        """The calling file, the called one, and its function; in the order in which they began."""
        found = sorted(self._hops.items(), key=lambda item: item[1].order)
        return [(*way, call.function) for way, call in found]

    def note(self, frame: FrameType, event: str, value: Any) -> None:
        """For `sys.setprofile`."""
        if self._over or event not in ("call", "return") or getattr(self._mine, "busy", False):
            return
        if file := file_of(frame):
            self._mine.busy = True  # what is looked at below may be code of ours
            try:
                if event == "call":
                    self._called(frame, file)
                elif _returns(frame):
                    self._returned(frame, value)
            finally:
                self._mine.busy = False

    def _called(self, frame: FrameType, file: str) -> None:
        code = frame.f_code
        self._begun |= code.co_qualname == self._asked.route
        if not self._begun:
            return
        call = self._calls.setdefault(frame, Call(file, code.co_qualname, len(self._calls)))
        self._back |= self._submitted and code.co_qualname == STEP
        self._submitted |= code.co_qualname == GIVEN
        if not self._within(call):
            self._take(call, _arguments(frame))

    def _within(self, call: Call) -> bool:
        """Whether it is a part of the step: only what leaves the engine takes the request on."""
        return self._back and call.file.startswith(ENGINE)

    def _take(self, call: Call, given: dict[str, object]) -> None:
        """Look at the arguments of a call."""
        values = list(given.values())
        if call.function.endswith("__init__") and "self" in given:
            self._made[id(given["self"])] = given["self"]
        call.bytes |= any(isinstance(one, bytes) for one in values)
        self._over = any(isinstance(one, bytes) and LAST in one for one in values)
        self._find_forms(values)
        call.held |= self._held(tuple(values))
        others = self._held(tuple(v for name, v in given.items() if name != "self"))
        call.own = _is_value(given.get("self")) and not self._counts(others)
        call.said |= _said(values)

    def _returned(self, frame: FrameType, value: object) -> None:
        call = self._calls.get(frame)
        if call is None:
            return
        if self._within(call):
            if call.passed_on:
                self._hop(frame, call)
            return
        self._find_forms([value])
        held = self._held(value)
        if call.said & _texts(value):
            held |= {ANSWER}  # in other words
        if isinstance(value, bytes) and self._counts(call.held | held):
            self._sender = self._caller(frame, call)
        given = self._counts(call.held)
        command = given and not call.own and not _may_return(frame.f_code)
        again = (given or self._back) and self._counts(held, self._back)
        if command or again or (given and call.passed_on):
            self._hop(frame, call)

    def _hop(self, frame: FrameType, call: Call) -> None:
        way = self._caller(frame, call), call.file
        if way[0] and way[0] != way[1] and AROUND not in way:
            self._hops[way] = min(call, self._hops.get(way, call), key=lambda one: one.order)
        above = frame.f_back
        while above is not None:
            if above in self._calls:
                self._calls[above].passed_on = True
            above = above.f_back

    def _caller(self, frame: FrameType, call: Call) -> str:
        """The file of the nearest function of ours that calls, and not from before the route; of bytes that came in,
        the file that sent them."""
        above = frame.f_back
        while above is not None and above not in self._calls and (call.order or not file_of(above)):
            above = above.f_back
        return file_of(above) or (self._sender if call.bytes else "")

    def _counts(self, held: Held, answer: bool = False) -> bool:
        """Whether it is the request, or where only that counts its answer."""
        return ANSWER in held or (held >= WHOLE and not answer)

    def _held(self, value: object, depth: int = 0) -> Held:
        """What a value has of the request, through values and through all that was made for it."""
        match value:
            case _ if depth > DEEP or isinstance(value, bool):
                return NOTHING
            case int():
                return frozenset({OPTION}) if value == self._asked.seed else NOTHING
            case str() | bytes():
                return self._in_text(value)
            case Piece() | Output() | Completion():
                return frozenset({ANSWER})
            case list() if value and isinstance(value[0], int):
                begins = value[: len(self._asked.tokens)] == [*self._asked.tokens]
                return frozenset({PROMPT}) if begins else NOTHING
        inner: Iterable[object] = ()
        if isinstance(value, dict):
            inner = list(value.values())
        elif isinstance(value, list | tuple):
            inner = list(value)
        elif _is_value(value) or id(value) in self._made:
            inner = _fields(value)
        return NOTHING.union(*(self._held(one, depth + 1) for one in inner))

    def _in_text(self, value: str | bytes) -> Held:
        text = value if isinstance(value, str) else value.decode("utf-8", "replace")
        if text.startswith("data: "):
            return frozenset({ANSWER})
        if self._asked.text not in text:
            return NOTHING
        return frozenset({PROMPT}) if isinstance(value, str) else WHOLE  # a message

    def _find_forms(self, values: Iterable[object], depth: int = 0) -> None:
        if self._back or depth > DEEP:
            return
        for value in values:
            if isinstance(value, dict):
                self._find_forms(list(value.values()), depth + 1)
            elif isinstance(value, list | tuple) and not _is_value(value):
                self._find_forms(value, depth + 1)
            elif type(value).__module__.startswith("fastslow."):
                self._find_form(value, depth)

    def _find_form(self, value: object, depth: int) -> None:
        fields = _fields(value)
        if _is_value(value):
            self._find_forms(fields, depth + 1)
            held = self._held(value)
        else:  # what lies in other forms is theirs
            each = [self._held_itself(one) for one in fields]
            held = NOTHING.union(*each)
        if held & WHOLE:
            (self.forms if held >= WHOLE else self.parts).add(type(value).__name__)

    def _held_itself(self, value: object) -> Held:
        """What a field has that is no form, and lies in none."""
        if isinstance(value, dict):
            return NOTHING.union(*map(self._held_itself, list(value.values())))
        if isinstance(value, list | tuple) and not _is_value(value) and not isinstance(next(iter(value), None), int):
            return NOTHING.union(*map(self._held_itself, value))
        if isinstance(value, str | int | list):
            return self._held(value)
        held = self._held(value) if _is_value(value) else NOTHING
        return NOTHING if held >= WHOLE else held


def _is_value(value: object) -> bool:
    if isinstance(value, type):
        return False
    named = isinstance(value, tuple) and hasattr(value, "_fields")
    return named or is_dataclass(value) or isinstance(value, BaseModel | Struct)


def _fields(value: object) -> list[object]:
    """All that an object has, without calling code of its class."""
    if isinstance(value, tuple):
        return list(value)
    names = list(getattr(type(value), "__struct_fields__", ()))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    own: dict[str, object] = getattr(value, "__dict__", {})
    return [*own.values(), *(getattr(value, name) for name in names if hasattr(value, name))]


def _arguments(frame: FrameType) -> dict[str, object]:
    code: CodeType = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 4) + bool(code.co_flags & 8)  # *args, **kwargs
    local = frame.f_locals
    return {name: local[name] for name in code.co_varnames[:count] if name in local}


def _said(value: object) -> set[str]:
    """The texts of pieces of an answer."""
    if isinstance(value, Piece | Completion):
        return {text for text in (value.text, value.reasoning) if text.strip()}
    return set().union(*map(_said, value)) if isinstance(value, list | tuple) else set()


def _texts(value: object, depth: int = 0) -> set[str]:
    """All texts in a value."""
    if isinstance(value, str):
        return {value}
    if depth > DEEP or not isinstance(value, dict | list | tuple):
        return set()
    return set().union(*(_texts(one, depth + 1) for one in (value.values() if isinstance(value, dict) else value)))


@cache
def _may_return(code: CodeType) -> bool:
    """Whether a function can return anything but None."""
    before, found = None, False
    for step in dis.get_instructions(code):
        plain = before is not None and before.opname == "LOAD_CONST" and before.argval is None
        found |= step.opname == "RETURN_VALUE" and not plain
        found |= step.opname == "RETURN_CONST" and step.argval is not None
        before = step
    return found


def _returns(frame: FrameType) -> bool:
    """Whether a function is over, and does not only wait."""
    name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
    return name.startswith("RETURN_") and name != "RETURN_GENERATOR"
