"""Grammars run by the package llguidance: compiled once, followed by every request that names them."""

from __future__ import annotations

import importlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import numpy as np

from fastslow.engine.checked import shown
from fastslow.engine.params import GrammarSpec
from fastslow.engine.sampling.grammar import Ended, GrammarError
from fastslow.engine.sampling.json_schema import check_embedded, check_schema
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.engine.token_mask import Allowed

MOST_KEPT = 64  # compiled grammars
DEEP_STACK = 2**28  # bytes, of which those are taken that are used: 3 kB for each rule of a chain
_STACKS = threading.Lock()  # the size of new stacks is one for the process
T = TypeVar("T")
MOST_TRIES = 8  # of a request after errors: each compiles its grammar while all wait
LONGEST_FORCED = 1024  # bytes of a certain text, which is cut into tokens at each of its places
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
    """Compiles grammars for one model, in any thread, and keeps the latest.

    Args:
        tokenizer: of the model.
        columns: of the model's logits.
        marks: tokens that are no text, such as end tokens and thinking tags.

    Raises ValueError where llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, columns: int, marks: Collection[int]) -> None:
        self._library = _library()
        self._columns = columns
        self._tokenizer = self._library.LLTokenizer(_Vocabulary(tokenizer, columns, marks))
        self._limits = self._library.LLParserLimits(**LIMITS)
        self._made: OrderedDict[GrammarSpec, Any] = OrderedDict()
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
            return LLGuidanceMatcher(made, partial(self._compiled_anew, spec), self._columns)

    def _compiled(self, spec: GrammarSpec) -> Any:
        try:
            made = self._library.LLMatcher(
                self._tokenizer, self._source(spec), log_level=0, limits=self._limits
            )
            if made.is_error():
                raise ValueError(_first_line(made.get_error()))
            first = LLGuidanceMatcher(made, lambda: made, self._columns)
            if not first.mask().any() and first.ended() is Ended.NO:
                raise ValueError("no text fits it, or none that this model's tokens can spell")
        except (ValueError, UnicodeError) as error:
            raise ValueError(f"grammar.{spec.kind} cannot be used: {error}") from None
        except RecursionError:
            raise ValueError(
                f"grammar.{spec.kind} cannot be used: it is nested too deeply"
            ) from None
        return made

    def _compiled_anew(self, spec: GrammarSpec) -> Any:
        made = with_deep_stack(partial(self._compiled, spec))
        with self._lock:
            self._made[spec] = made
        return made

    def _source(self, spec: GrammarSpec) -> str:
        """The grammar in the library's own form."""
        matcher = self._library.LLMatcher
        if spec.json_schema is not None or spec.json_object:
            schema = str(spec.json_schema) if spec.json_schema is not None else '{"type": "object"}'
            check_schema(schema)
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
    """`Matcher` of one request.

    Args:
        start: the library's matcher at the beginning of the grammar; it stays there.
        anew: makes another one. Copies share a lexer, whose limit one of them may have used up.
        columns: of the model's logits.
    """

    def __init__(self, start: Any, anew: Callable[[], Any], columns: int) -> None:
        self._matcher = start.deep_copy()
        self._anew = anew
        self._columns = columns
        self._tries = MOST_TRIES
        self._taken: list[int] = []

    def mask(self) -> Allowed:
        bits = np.frombuffer(self._tried(lambda: self._matcher.compute_bitmask()), np.uint8)
        allowed_V: Allowed = np.unpackbits(bits, count=self._columns, bitorder="little").view(bool)
        return allowed_V

    def accept(self, token: int) -> bool:
        taken = bool(self._tried(lambda: self._matcher.try_consume_tokens([token])))
        self._taken += [token] * taken
        return taken

    def roll_back(self, count: int) -> None:
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

    def _tried(self, ask: Callable[[], T]) -> T:
        """What the library says. It takes nothing more after an error, so it starts anew here and is asked once
        more: other texts, perhaps of other requests, may have used up the limit of their common lexer."""
        said = ask()
        if self._matcher.is_error() and self._tries > 0:
            self._tries -= 1
            self._restore()
            said = ask()
        if self._matcher.is_error():
            error = _first_line(self._matcher.get_error())
            self._restore()
            raise GrammarError(f"the grammar stopped: {error}")
        return said

    def _restore(self) -> None:
        self._matcher = self._anew().deep_copy()
        self._matcher.consume_tokens(self._taken)


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
        """The tokens of a text that continues another."""
        data = text.encode() if isinstance(text, str) else text
        before = self._tokenizer.encode("\n", add_special=False)
        try:
            ids = self._tokenizer.encode_parts(["\n", data.decode()], add_special=False)
            own = ids[len(before) :] if data else []
        except (UnicodeDecodeError, ValueError):
            own = []
        if b"".join(map(self._tokenizer.token_bytes, own)) != data or self._marks & {*own}:
            own = [self._single[byte] for byte in data if byte in self._single]
        return own


def _library() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise ValueError(
            "grammars need the package llguidance: pip install 'fastslow[grammar]'"
        ) from None


def _lark(text: str) -> str:
    """A GBNF grammar as Lark."""
    convert = importlib.import_module("llguidance.gbnf_to_lark").any_to_lark
    try:
        return str(convert(text))
    except RecursionError:
        raise
    except Exception as error:  # noqa: BLE001 - it is not said which ones there are
        raise ValueError(shown(str(error))) from None


def with_deep_stack(call: Callable[[], T]) -> T:
    """What a call gives that may recurse as deep as a grammar's longest text has rules. The library does not
    look at its stack: it would end the process."""
    over = Future[T]()

    def run() -> None:
        try:
            over.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            over.set_exception(error)

    with _STACKS:
        usual = threading.stack_size(DEEP_STACK)
        try:
            thread = threading.Thread(target=run, name="fastslow-grammar")
            thread.start()
        finally:
            threading.stack_size(usual)
    return over.result()


def _first_line(error: str) -> str:
    """What an error of the library says, in one line of a bounded length."""
    text = " ".join(error.split())
    return text if len(text) <= 300 else f"{text[:300]}..."
