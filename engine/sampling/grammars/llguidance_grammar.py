"""Grammars run by the package llguidance: compiled once, followed by every request that names them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastslow.engine.checked import shown
from fastslow.engine.params import GrammarSpec
from fastslow.engine.sampling.grammars.closed_objects import closed
from fastslow.engine.sampling.grammars.grammar import FADE, SLOW, Ended, GrammarError
from fastslow.engine.sampling.grammars.json_schema import check_embedded, check_schema, library
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.engine.token_mask import Allowed

MOST_KEPT = 64  # compiled grammars
DEEP_STACK = 2**28  # bytes, of which those are taken that are used: 3 kB for each rule of a chain
_STACKS = threading.Lock()  # the size of new stacks is one for the process
T = TypeVar("T")
COMMON_FADE = 0.99  # a token's of any copy, of what is expected of a new one
MOST_TRIES = 8  # of a request after errors: each compiles its grammar while all wait
LONGEST_FORCED = 1024  # bytes of a certain text, which is cut into tokens at each of its places
LONGEST_ENCODED = 4096  # bytes of a certain text, of which the library wants the first token
LONGEST_HERE = 8192  # characters of a GBNF grammar that this process converts
MOST_CONVERTING = 10.0  # seconds
CONVERT = """import sys
sys.path.append(sys.argv[1])
from llguidance.gbnf_to_lark import any_to_lark
sys.stdout.buffer.write(any_to_lark(sys.stdin.buffer.read().decode()).encode())"""
# between parts of JSON: without a limit a model may say nothing else
OPTIONS = {"whitespace_pattern": r"\x20|\n[\x20\t]{0,40}"}
LIMITS = {
    "max_lexer_states": 50_000,  # of 1 to 2 kB
    "max_grammar_size": 200_000,
    "initial_lexer_fuel": 1_000_000,  # 20 ms
    "step_lexer_fuel": 200_000,  # 14 ms
    "step_max_items": 50_000,
    "max_items_in_row": 10_000,  # four for each optional property of an object
    "verbose_errors": False,
}


class GrammarCompiler:
    """Compiles grammars for one model, in any thread, and keeps the latest. tokenizer: of the model. columns: of the
    model's logits. marks: tokens that are no text, such as end tokens and thinking tags.

    Raises ValueError where llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, columns: int, marks: Collection[int]) -> None:
        self._library = library()
        self._columns = columns
        self._tokenizer = self._library.LLTokenizer(_Vocabulary(tokenizer, columns, marks))
        self._limits = self._library.LLParserLimits(**LIMITS)
        self._executors = threading.local()  # whose threads are as urgent as the one that made them
        self._made: OrderedDict[GrammarSpec, LLGuidanceMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, spec: GrammarSpec) -> LLGuidanceMatcher:
        """A matcher at the beginning of the grammar. ValueError says in one sentence what is wrong with it."""
        with self._lock:
            made = self._made.get(spec)
        made = self._compiled_anew(spec) if made is None else made
        with self._lock:
            self._made[spec] = made
            self._made.move_to_end(spec)
            while len(self._made) > MOST_KEPT:
                self._made.popitem(last=False)
            return made.copy()

    def _compiled(self, spec: GrammarSpec) -> LLGuidanceMatcher:
        try:
            made = self._library.LLMatcher(
                self._tokenizer, self._source(spec), log_level=0, limits=self._limits
            )
            if made.is_error():
                raise ValueError(_first_line(made.get_error()))
            first = LLGuidanceMatcher(made, self._columns, self._take)
            if not first.mask().any() and first.ended() is Ended.NO:
                raise ValueError("no text fits it, or none that this model's tokens can spell")
        except (ValueError, UnicodeError) as error:
            raise ValueError(f"grammar.{spec.kind} cannot be used: {error}") from None
        except RecursionError:
            raise ValueError(
                f"grammar.{spec.kind} cannot be used: it is nested too deeply"
            ) from None
        first.anew = partial(self._compiled_anew, spec)
        return first

    def _compiled_anew(self, spec: GrammarSpec) -> LLGuidanceMatcher:
        made = with_deep_stack(partial(self._compiled, spec))
        with self._lock:
            self._made[spec] = made
        return made

    def _take(self, matcher: Any, token: int) -> bool:
        """Take a token that fits, while other threads run: the library lets them where it has two matchers."""
        other = self._library.LLMatcher(self._tokenizer, "", log_level=0)  # of no grammar
        if not hasattr(self._executors, "own"):
            self._executors.own = self._library.LLExecutor(num_threads=1)
        return bool(self._executors.own.consume_token_par([(matcher, token), (other, token)])[0])

    def _source(self, spec: GrammarSpec) -> str:
        """The grammar in the library's own form."""
        matcher = self._library.LLMatcher
        if spec.json_schema is not None or spec.json_object:
            schema = str(spec.json_schema) if spec.json_schema is not None else '{"type": "object"}'
            schema = json.dumps(closed(check_schema(schema)))
            return str(matcher.grammar_from_json_schema(schema, overrides=OPTIONS))
        if spec.regex is not None:
            return str(matcher.grammar_from_regex(spec.regex))
        if spec.choice is not None:
            texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in spec.choice)
            return str(matcher.grammar_from_lark(f"start: {texts}"))
        lark = spec.lark or _lark(str(spec.gbnf))
        check_embedded(lark)
        return str(matcher.grammar_from_lark(lark))


class LLGuidanceMatcher:
    """`Matcher` of one request. matcher: the library's, at the beginning of the grammar. columns: of the model's
    logits. take: takes a token that fits, while other threads run."""

    def __init__(self, matcher: Any, columns: int, take: Callable[[Any, int], bool]) -> None:
        self._own, self._lost = matcher, False
        self.anew: Callable[[], LLGuidanceMatcher] = lambda: self  # of a lexer that is not used up
        self._columns = columns
        self._take = take
        self._tries = MOST_TRIES
        self._taken: list[int] = []
        self._bits: NDArray[np.uint8] | GrammarError | None = None  # the mask of this place
        self.seconds = 0.0
        self._expected = [0.0]  # seconds, by what all copies showed

    def copy(self) -> LLGuidanceMatcher:
        """At the same place. It shares the lexer."""
        other = copy(self)
        other._own, other._taken = self._matcher.deep_copy(), [*self._taken]
        other.seconds = self._expected[0]
        return other

    def mask(self) -> Allowed:
        bits = self._mask_here()
        allowed_V: Allowed = np.unpackbits(bits, count=self._columns, bitorder="little").view(bool)
        return allowed_V

    def accept(self, token: int) -> bool:
        bits, apart = self._bits, self.seconds > SLOW
        apart = apart and isinstance(bits, np.ndarray) and bool(bits[token >> 3] >> (token & 7) & 1)
        clock = time.perf_counter if apart else time.thread_time
        began = clock()
        if apart:  # other threads run meanwhile
            taken = self._tried(lambda: self._take(self._matcher, token))
        else:
            taken = bool(self._tried(lambda: self._matcher.try_consume_tokens([token])))
        self._note(clock() - began)
        if taken:
            self._taken.append(token)
            self._bits = None
        return taken

    def roll_back(self, count: int) -> None:
        self._bits = None
        self._matcher.rollback(count)
        del self._taken[len(self._taken) - count :]

    def forced(self) -> Sequence[int]:
        """As `Matcher` has it. A long text is certain from where its rest is short enough."""
        try:
            return self._tried(self._forced)
        except GrammarError:
            return ()

    def _forced(self) -> Sequence[int]:
        if self._matcher.is_stopped() or len(self._matcher.compute_ff_bytes()) > LONGEST_FORCED:
            return ()
        tokens: Sequence[int] = self._matcher.compute_ff_tokens()
        return tokens[: self._matcher.validate_tokens(tokens)] if tokens else ()

    def ended(self) -> Ended:
        if self._matcher.is_error() or not self._matcher.is_accepting():
            return Ended.NO
        return Ended.MUST if self._matcher.is_stopped() else Ended.MAY

    def _note(self, seconds: float) -> None:
        self.seconds = max(seconds, FADE * self.seconds)
        # one late mask, as where the system was busy, is forgotten after some answers
        self._expected[0] = max(seconds, COMMON_FADE * self._expected[0])

    def _mask_here(self) -> NDArray[np.uint8]:
        if self._bits is None:
            began = time.thread_time()
            try:
                data = self._tried(lambda: self._matcher.compute_bitmask())
                self._bits = np.frombuffer(data, np.uint8)
            except GrammarError as error:
                self._bits = error
            self._note(time.thread_time() - began)
        if isinstance(self._bits, GrammarError):
            raise self._bits
        return self._bits

    def _tried(self, ask: Callable[[], T]) -> T:
        """Ask the library, and return what it says. It takes nothing more after an error, so it starts anew, and
        is asked once more: other texts, perhaps of other requests, may have used up the limit of their common lexer."""
        said = ask()
        if self._own.is_error() and self._tries > 0:
            self._tries -= 1
            self._lost = True
            said = ask()
        if self._own.is_error():
            self._lost = True
            raise GrammarError(f"the grammar stopped: {_first_line(self._own.get_error())}")
        return said

    @property
    def _matcher(self) -> Any:
        if self._lost:
            self._own, self._lost = self.anew()._own.deep_copy(), False
            self._own.consume_tokens(self._taken)
        return self._own


class _Vocabulary:
    """A tokenizer as llguidance reads it: pieces by id, and after them one end token for itself."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, columns: int, marks: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._marks = tokenizer.special_ids.union(marks)
        self.tokens = [*map(tokenizer.token_bytes, range(columns)), b"<end>"]
        self.eos_token_id = columns
        self.special_token_ids = sorted({*self._marks, columns})
        single = ((data, i) for i, data in enumerate(self.tokens) if len(data) == 1)
        self._single = {data[0]: i for data, i in single if i not in self._marks}

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of a text that continues another; of a long one, those of its beginning."""
        data = text.encode() if isinstance(text, str) else text
        if (end := LONGEST_ENCODED) < len(data):
            while end and data[end] & 0xC0 == 0x80:  # inside a character
                end -= 1
            data = data[:end]
        before = self._tokenizer.encode("\n", add_special=False)
        try:
            ids = self._tokenizer.encode_parts(["\n", data.decode()], add_special=False)
            own = ids[len(before) :] if data else []
        except (UnicodeDecodeError, ValueError):
            own = []
        if b"".join(map(self._tokenizer.token_bytes, own)) != data or self._marks & {*own}:
            own = [self._single[byte] for byte in data if byte in self._single]
        return own


def _lark(text: str) -> str:
    """A GBNF grammar as Lark. A long one is converted in a process: it takes seconds of Python."""
    if len(text) > LONGEST_HERE:
        return _lark_elsewhere(text)
    convert = importlib.import_module("llguidance.gbnf_to_lark").any_to_lark
    try:
        return str(convert(text))
    except RecursionError:
        raise
    except Exception as error:  # noqa: BLE001 - it is not said which ones there are
        raise ValueError(shown(str(error))) from None


def _lark_elsewhere(text: str) -> str:
    folder = Path(importlib.import_module("llguidance").__file__ or "").parents[1]
    command = [sys.executable, "-I", "-c", CONVERT, str(folder)]  # no code of the working folder
    try:
        over = subprocess.run(
            command,
            input=text.encode(),
            capture_output=True,
            check=True,
            timeout=MOST_CONVERTING,
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"to convert it takes more than {MOST_CONVERTING:g} s") from None
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        kind, _, said = last.partition(": ")
        if kind == RecursionError.__name__:
            raise RecursionError(said) from None
        ended = f"its conversion ended with exit code {error.returncode}"
        raise ValueError(shown(said) if said else ended) from None
    return over.stdout.decode()


def with_deep_stack(call: Callable[[], T]) -> T:
    """Run a call that may recurse as deep as a grammar's longest text has rules, and return its result. The library
    does not look at its stack: it would end the process."""
    with ThreadPoolExecutor(1, "fastslow-grammar") as own:
        with _STACKS:
            usual = threading.stack_size(DEEP_STACK)
            try:
                over = own.submit(call)  # which starts its thread
            finally:
                threading.stack_size(usual)
        return over.result()


def _first_line(error: str) -> str:
    """Return an error of the library in one line of a bounded length."""
    text = " ".join(error.split())
    return text if len(text) <= 300 else f"{text[:300]}..."
