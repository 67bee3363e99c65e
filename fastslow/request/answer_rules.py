"""Rules that bound an answer: the thinking rules of its mode, and its grammar."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

from fastslow.engine.core.request_parts import EncodedPrompt
from fastslow.engine.kv.state.layout import UNFOLDED
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import GrammarSpec, Mode, SamplingParams, shown
from fastslow.engine.sampling.answer_start import (
    AnswerStart,
    AtOnce,
    BehindAnalysis,
    BehindChannels,
    BehindTags,
    Spellings,
)
from fastslow.engine.sampling.confidence import AnswerProbe
from fastslow.engine.sampling.grammars.grammar import Grammar
from fastslow.engine.sampling.thinking import Steering, Thinking
from fastslow.engine.sampling.thinking_limits import ThinkingLimits
from fastslow.engine.text.thought import HARMONY, TagTokens
from fastslow.policies.turns import answer_room
from fastslow.request.input_processor import InputProcessor

if TYPE_CHECKING:  # which imports the library
    from fastslow.engine.sampling.grammars.llguidance_grammar import GrammarCompiler

PROMPT_END = 64  # tokens of a prompt in which the header of an answer is looked for


class ThinkingRules:
    """Makes the `Thinking` of requests, and warns once of what a mode cannot have. `ends`: the model's own end
    tokens."""

    def __init__(self, inputs: InputProcessor, config: ModelConfig, ends: frozenset[int]) -> None:
        self._inputs = inputs
        self._config = config
        self._ends = ends

    def make(
        self, prompt: EncodedPrompt, room: int, mode: Mode, params: SamplingParams
    ) -> Thinking | None:
        """For an answer of at most `room` tokens; None for a model that does not think, unless its answer is
        watched for circles.

        A chat in a mode without thinking and without a budget has a budget of 0.
        """
        turn = prompt.turn_left(mode)
        most, phrase = mode.thinking_budget, mode.closing or ""
        thoughts = self._inputs.analysis if prompt.tools else self._inputs.thoughts
        loop = mode.loop
        if thoughts is None:
            if loop is not None and loop.answer:
                steering = Steering(ThinkingLimits(loop=loop))
                return Thinking(None, False, len(prompt.tokens), steering)
            if most is not None or loop is not None or mode.confidence is not None:
                self._inputs.said.note(
                    f"mode {mode.name!r} bounds its thoughts, but this model has no thinking tags: "
                    "name them in fastslow.json or as thinking_tags",
                    "WARNING",
                )
            return None
        if most is None and self._inputs.silences(mode) and prompt.chat:
            most, phrase = 0, ""
        closing, warning, warn_at = thoughts.closing(phrase), tuple[int, ...](), None
        left = min((n for n in (most, turn) if n is not None), default=None)
        if mode.warn_at is not None and left:
            warning, warn_at = thoughts.written(mode.warning), math.ceil(mode.warn_at * left)
        for name, text, ids in (("closing", phrase, closing), ("warning", mode.warning, warning)):
            if (outside := max(ids, default=0)) >= self._config.vocab_size:
                raise ValueError(
                    f"{name}={shown(text)} holds token id {outside}, outside the vocabulary"
                )
        kept, tag = answer_room(mode.answer_room, room), len(thoughts.close_ids)
        if kept and prompt.opened and room <= tag:
            raise ValueError(
                f"answer_room={mode.answer_room!r} cannot be kept: the prompt opens a thought, whose closing tag "
                f"takes {tag} of the {room} tokens that max_tokens and the context leave: raise max_tokens, "
                "shorten the prompt, or give answer_room=None"
            )
        ends_at = None if kept is None else room - kept
        limits = ThinkingLimits(most, turn, mode.thinking_soft, ends_at, warn_at, loop)
        if ends_at is None and most and most + len(closing) >= room:
            self._inputs.said.note(
                f"mode {mode.name!r}: thinking_budget={most} leaves no room for an answer within "
                f"max_tokens={room}",
                "WARNING",
            )
        ends: frozenset[int] = frozenset()
        if ends_at is not None and not params.ignore_eos:
            ends = self._ends - set(params.stop_token_ids)
        every = None if mode.confidence is None else mode.confidence.every
        probe = self._probe(mode, thoughts, room, params)
        policy = None if limits == ThinkingLimits(soft=mode.thinking_soft) else limits
        steering = Steering(
            policy, closing, warning, ends, None if kept is None else room, every, probe
        )
        return Thinking(thoughts, prompt.opened, len(prompt.tokens), steering)

    def _probe(
        self, mode: Mode, thoughts: TagTokens, room: int, params: SamplingParams
    ) -> AnswerProbe | None:
        rule, text = mode.confidence, mode.closing or ""
        if rule is None:
            return None
        if rule.prefix:
            tag = thoughts.close.decode()
            text += rule.prefix if tag in text else tag + rule.prefix
        start = thoughts.closing(text)
        if (outside := max(start)) >= self._config.vocab_size:
            raise ValueError(
                f"confidence.prefix={shown(rule.prefix)} holds token id {outside}, outside the vocabulary"
            )
        size = len(start) + rule.tokens
        if size > UNFOLDED and self._config.state_layout.running:
            raise ValueError(
                f"confidence asks with {len(start)} tokens for {rule.tokens}, and a model with running states has room "
                f"for {UNFOLDED} in sum: lower tokens, or shorten prefix"
            )
        if rule.every + size > room:
            self._inputs.said.note(
                f"mode {mode.name!r}: confidence asks after {rule.every} tokens of thought, and within "
                f"max_tokens={room} there is no room for that",
                "WARNING",
            )
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else self._ends)}
        return AnswerProbe(start, rule.tokens, rule.times, rule.sure, ends)


class Grammars:
    """Makes the grammars of one model's requests, in any thread. `ends`: token ids that end any answer."""

    def __init__(self, inputs: InputProcessor, columns: int, ends: frozenset[int]) -> None:
        self._inputs = inputs
        self._columns = columns
        self._ends = ends
        self._lock = threading.Lock()
        self._made: tuple[GrammarCompiler, Spellings] | None = None

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

    def _parts(self) -> tuple[GrammarCompiler, Spellings]:
        """Made when the first grammar is asked for: it takes some tenths of a second."""
        with self._lock:
            if self._made is None:
                from fastslow.engine.sampling.grammars.llguidance_grammar import GrammarCompiler

                tokenizer, tags = self._inputs.tokenizer, self._inputs.tags
                if tokenizer is None:
                    raise ValueError("a grammar needs a tokenizer, and this checkpoint has none")
                marks = self._ends | (tags.ids(tokenizer) if tags else frozenset())
                compiler = GrammarCompiler(tokenizer, self._columns, marks)
                thoughts = self._inputs.thoughts
                self._made = compiler, Spellings(tokenizer, thoughts, self._columns)
            return self._made
