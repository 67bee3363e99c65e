"""What bounds an answer: the thinking rules of its mode, and its grammar."""

from __future__ import annotations

import threading
from typing import Protocol

from fastslow.engine.params import GrammarSpec, Mode, shown
from fastslow.engine.sampling.answer_start import (
    AnswerStart,
    AtOnce,
    BehindAnalysis,
    BehindChannels,
    BehindTags,
    Spellings,
)
from fastslow.engine.sampling.grammar import Grammar, Matcher
from fastslow.engine.sampling.thinking import Thinking
from fastslow.engine.text.thought import HARMONY
from fastslow.policies.thinking_budget import ThinkingBudget
from fastslow.request.input_processor import EncodedPrompt, InputProcessor

PROMPT_END = 64  # tokens of a prompt in which the header of an answer is looked for


class ThinkingRules:
    """Makes the `Thinking` of requests, and warns once of what a mode cannot have."""

    def __init__(self, inputs: InputProcessor, vocab_size: int) -> None:
        self._inputs = inputs
        self._vocab_size = vocab_size

    def make(self, prompt: EncodedPrompt, room: int, mode: Mode) -> Thinking | None:
        """For an answer of at most `room` tokens; None for a model that does not think.

        A chat in a mode without thinking and without a budget has a budget of 0.
        """
        most, phrase = mode.thinking_budget, mode.closing or ""
        thoughts = self._inputs.analysis if prompt.tools else self._inputs.thoughts
        if thoughts is None:
            if most is not None or mode.early_exit:
                self._inputs.said.note(
                    f"mode {mode.name!r} bounds its thoughts, but this model has no thinking tags: "
                    "name them in fastslow.json or as thinking_tags",
                    "WARNING",
                )
            return None
        if most is None and self._inputs.silences(mode) and prompt.chat:
            most, phrase = 0, ""
        bounded = most is not None or mode.early_exit
        policy = ThinkingBudget(most, mode.thinking_soft, mode.early_exit) if bounded else None
        closing = thoughts.closing(phrase)
        if (outside := max(closing)) >= self._vocab_size:
            raise ValueError(
                f"closing={shown(phrase)} holds token id {outside}, outside the vocabulary"
            )
        if most and most + len(closing) >= room:
            self._inputs.said.note(
                f"mode {mode.name!r}: thinking_budget={most} leaves no room for an answer within "
                f"max_tokens={room}",
                "WARNING",
            )
        return Thinking(thoughts, prompt.opened, len(prompt.tokens), policy, closing)


class Compiler(Protocol):
    """Makes a matcher of a grammar, or says what is wrong with it in a ValueError."""

    def matcher(self, spec: GrammarSpec) -> Matcher: ...


class Grammars:
    """Makes the grammars of one model's requests, in any thread. `ends`: token ids that end any answer."""

    def __init__(self, inputs: InputProcessor, columns: int, ends: frozenset[int]) -> None:
        self._inputs = inputs
        self._columns = columns
        self._ends = ends
        self._lock = threading.Lock()
        self._made: tuple[Compiler, Spellings] | None = None

    def grammar(
        self, spec: GrammarSpec, prompt: EncodedPrompt, mode: Mode, ends: frozenset[int]
    ) -> Grammar:
        """For a new request. Where a chat in channels offers tools, a grammar in Lark holds all messages
        after the analysis, and not the answer alone: a call is another message."""
        matcher = self._parts()[0].matcher(spec)
        start = self._start(prompt, mode)
        if prompt.tools and spec.kind == "lark" and self._inputs.tags == HARMONY:
            start = BehindAnalysis(self._parts()[1], prompt.opened)
        return Grammar(start, matcher, ends, len(prompt.tokens))

    def _start(self, prompt: EncodedPrompt, mode: Mode) -> AnswerStart:
        spellings, tags, tokenizer = self._parts()[1], self._inputs.tags, self._inputs.tokenizer
        assert tokenizer is not None, "a grammar was compiled"
        spaces = 0 if prompt.continues else tokenizer.leading_spaces
        if tags == HARMONY:
            end = tokenizer.decode(prompt.tokens[-PROMPT_END:], skip_special=False)
            return BehindChannels(spellings, end)
        if tags is None or not (prompt.opened or (tags.open and mode.thinking != "off")):
            return AtOnce(spellings, spaces)
        return BehindTags(spellings, prompt.opened, spaces)

    def _parts(self) -> tuple[Compiler, Spellings]:
        """Made when the first grammar is asked for: it takes some tenths of a second."""
        with self._lock:
            if self._made is None:
                from fastslow.engine.sampling.llguidance_grammar import GrammarCompiler

                tokenizer, tags = self._inputs.tokenizer, self._inputs.tags
                if tokenizer is None:
                    raise ValueError("a grammar needs a tokenizer, and this checkpoint has none")
                marks = self._ends | (tags.ids(tokenizer) if tags else frozenset())
                compiler = GrammarCompiler(tokenizer, self._columns, marks)
                thoughts = self._inputs.thoughts
                self._made = compiler, Spellings(tokenizer, thoughts, self._columns)
            return self._made
