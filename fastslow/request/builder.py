"""A prompt and its options become requests: prompt, mode, sampling, speculation, in this order."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import NamedTuple

from loguru import logger

from fastslow.drafters import DrafterFactory
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.request import EscalationState, EscalationTarget, Request
from fastslow.engine.core.request_parts import (
    AnswerLog,
    Drafting,
    EncodedPrompt,
    Scheduling,
    Sharing,
    Timing,
)
from fastslow.engine.core.step_trace import StepTrace
from fastslow.engine.host.machine import HomeProcess
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import Mode, SamplingParams, Speculation
from fastslow.engine.sampling.accept.accept import RULES
from fastslow.engine.sampling.accept.exact import Rule
from fastslow.engine.sampling.accept.lossy import LossyStepwise
from fastslow.engine.sampling.confidence import Confidence, PromptProbe
from fastslow.engine.sampling.rng import sibling_seed, successor_seed
from fastslow.engine.sampling.stop import Stopper
from fastslow.engine.text.vocabulary import Detokenizer
from fastslow.policies.mode_router import ModeChoice
from fastslow.policies.speculation.controller import SpeculationController
from fastslow.policies.turns import TurnCall
from fastslow.request.answer_rules import Grammars, ThinkingRules
from fastslow.request.input_processor import InputProcessor
from fastslow.request.mode_finder import ModeFinder
from fastslow.request.options import (
    GENERATION,
    GenerateOptions,
    Prompt,
    SpeculationLike,
    given_sampling,
    is_chat,
)
from fastslow.settings import read_settings
from fastslow.tool_calls.offered import openai_choice, openai_tools
from fastslow.tool_calls.prepare import ToolSupport

STEPWISE = "lossy-stepwise"
Asked = tuple[EncodedPrompt, Mode, SamplingParams]
"""A call in one of its modes."""


class CallContext(NamedTuple):
    """Facts that the answers to a call share: when it came, of `time.monotonic`, the preset that was chosen for it, with its
    reason, what reads its tool calls, the turn that it names, and the tags around answers."""

    called: float
    decided: ModeChoice | None
    tools: ToolSupport | None
    turn: TurnCall | None
    around: tuple[str, ...]


class RequestBuilder:
    """Turns a prompt and its options into requests, not submitted yet.

    usual: the meaning of speculation "auto" where a mode gives none.
    """

    def __init__(
        self,
        inputs: InputProcessor,
        core: EngineCore,
        drafters: DrafterFactory,
        controller: SpeculationController,
        modes: ModeFinder,
        usual: SpeculationLike | None,
    ) -> None:
        self.inputs = inputs
        self.modes = modes
        self._core = core
        self._drafters = drafters
        self._controller = controller
        self._config = core.model.config
        self.units = RoutedUnits.of(self._config)
        self._tokenizer = inputs.tokenizer
        own_ids = inputs.tokenizer.eos_ids if inputs.tokenizer else frozenset[int]()
        ends = own_ids | frozenset(self._config.eos_ids)
        self._eos_ids = frozenset(token for token in ends if token < self._config.vocab_size)
        if ends > self._eos_ids:
            outside = sorted(ends - self._eos_ids)
            logger.warning("end tokens {} are outside the vocabulary: no answer has them", outside)
        self._thinking = ThinkingRules(inputs, self._config, self._eos_ids)
        self._grammars = Grammars(inputs, self._config.vocab_size, self._eos_ids)
        self._ids = itertools.count()
        self._home = HomeProcess()
        self._usual = self._speculation(usual, Mode(speculation=Speculation()))

    def check(self, prompt: Prompt, options: GenerateOptions) -> int:
        """Refuse what is seen to be wrong at a glance: nothing is tokenised and no file is read. Returns
        how many answers are wanted, by the mode that is given."""
        self._home.check()
        self.inputs.measure(prompt)
        params = self._sampling(options, self.modes.given(options.mode))
        if not isinstance(options.speculation, str | Speculation | None):
            self._speculation(options.speculation, Mode())
        if options.answered is not None:
            options.answered.check(self._config.vocab_size, self.inputs.context)
        if options.tools and not (prompt and is_chat(prompt)):
            raise ValueError("tools are for messages, and this prompt is none")
        openai_tools(options.tools)
        openai_choice(options.tool_choice)
        return params.n

    def with_tools(self, options: GenerateOptions) -> tuple[GenerateOptions, ToolSupport | None]:
        """The options with what their tools change, and what reads the calls; None: there are none."""
        if not options.tools and options.tool_choice is None:
            return options, None
        support = ToolSupport(
            openai_tools(options.tools),
            openai_choice(options.tool_choice),
            options.parallel_tool_calls,
            self.inputs.tool_calls,
            given_sampling(options.sampling).get("grammar"),
        )
        return options.with_tools(support.sampling, support.variables), support

    def build(
        self, prompt: Prompt, options: GenerateOptions, called: float
    ) -> tuple[list[list[Request]], CallContext]:
        """Check a prompt, and make the requests of its n answers: of each the first one, and those that may answer
        instead of it.

        called: when the call came, of `time.monotonic`.
        """
        self._home.check()
        self.inputs.measure(prompt)
        options, tools = self.with_tools(options)
        answered = options.answered
        mode, decided, probe, later = self.modes.find(
            options.mode, prompt, None if answered is None else answered.chosen
        )
        escalated = None
        if probe is None and mode.escalate is not None:
            escalated = self.modes.escalated(mode.escalate.to, options.mode, prompt)
        with self._turn(options, [mode, *later, *filter(None, [escalated])]) as turn:
            if probe is not None:
                probe().check(len(self._config.layers), self._config.hidden_size)
                if answered is not None and any(answered.tokens):
                    raise ValueError(
                        "answered.decided is missing: the mode is chosen as the prompt ends"
                    )
            elif escalated and mode.escalate and mode.escalate.how == "restart":
                later = [escalated]
            asked = [self._asked(prompt, options, one, turn) for one in (mode, *later)]
            params = asked[0][2]
            if answered is not None and len(answered.tokens) > params.n:
                raise ValueError(
                    f"answered.tokens has {len(answered.tokens)} entries, and n={params.n}"
                )
            seed = secrets.randbits(63) if params.seed is None else params.seed
            each = [
                self._candidates(asked, escalated, sibling_seed(seed, n), options, called, probe)
                for n in range(params.n)
            ]
            for n, (first, *_) in enumerate(each):
                if answered is not None and answered.begun(n):
                    answered.begin(first, n, self.units)
            if params.n > 1 and first.params.temperature == 0 and first.thought_params is None:
                self.inputs.said.warn(
                    "n above 1 at temperature 0 gives equal answers: set a temperature"
                )
            return each, CallContext(called, decided, tools, turn, self.inputs.around)

    def _turn(
        self, options: GenerateOptions, modes: Sequence[Mode]
    ) -> AbstractContextManager[TurnCall | None]:
        """The call in the turn that it names, of which it may spend what one of these modes allows."""
        if options.turn is None:
            return nullcontext()
        params, turn = self._sampling(options, modes[0]), self.inputs.turn(options)
        limits = [(m.thinking_budget, m.turn_budget, params.max_tokens) for m in modes]
        most = max(min(n for n in each if n is not None) for each in limits)
        return turn.begin(most, params.n)

    def _asked(
        self, prompt: Prompt, options: GenerateOptions, mode: Mode, turn: TurnCall | None
    ) -> Asked:
        """A call in one of its modes, checked: the same for all of its answers."""
        params, thoughts = self._sampling(options, mode), self.inputs.thoughts
        # a thought would be the whole answer
        if mode.answer_room and thoughts and params.max_tokens < len(thoughts.close_ids) + 2:
            mode = mode.model_copy(update={"thinking": "off"})
        encoded = self.inputs.encode(prompt, mode, options, turn)
        prediction = self.inputs.prediction(options.prediction)
        return encoded._replace(prediction=prediction), mode, params

    def _sampling(self, options: GenerateOptions, mode: Mode) -> SamplingParams:
        own = self.inputs.sampling
        if own and not (options.sampling_defaults or isinstance(options.sampling, SamplingParams)):
            fields = ", ".join(f"{name}={value}" for name, value in own.items())
            self.inputs.said.note(f"sampling of calls that give none: {fields} ({GENERATION})")
        params = options.sampling_in(mode, own)
        self.inputs.check_params(params)
        return params

    def _speculation(self, wish: SpeculationLike | None, mode: Mode) -> Speculation:
        """The settings that a wish means, with their drafter made."""
        if wish is None or wish == "auto":
            settings = mode.speculation or self._usual
        elif isinstance(wish, Speculation):
            settings = wish
        elif isinstance(wish, Mapping):
            settings = Speculation(**wish)
        elif not isinstance(wish, str):
            kind = type(wish).__name__
            raise ValueError(f"speculation must be a name or Speculation, not {kind}")
        elif wish.endswith(".json"):
            settings = read_settings(wish, self._drafters.folder)
        else:
            settings = Speculation(drafter=wish)
        self._drafters.make(settings)
        return settings

    def _candidates(
        self,
        asked: Sequence[Asked],
        escalated: Mode | None,
        seed: int,
        options: GenerateOptions,
        called: float,
        probe: Callable[[], PromptProbe] | None,
    ) -> list[Request]:
        """The request of one answer, and what may replace it: where its confidence falls, or by its probe."""
        first, *others = asked
        trace = StepTrace(self.units) if options.trace else None
        # what a probe takes answers as if it had been asked for: nothing was said before
        own = successor_seed(seed) if probe is None else seed
        later = [self._request(one, own, options, called, trace) for one in others]
        request = self._request(first, seed, options, called, trace, escalated, *later)
        if probe is not None:
            targets = [EscalationTarget(one.mode, successor=one) for one in later]
            request.escalation = EscalationState(probe(), targets=targets)
        return [request, *later]

    def _request(
        self,
        asked: Asked,
        seed: int,
        options: GenerateOptions,
        called: float,
        trace: StepTrace | None,
        escalated: Mode | None = None,
        *later: Request,
    ) -> Request:
        """escalated: the mode that it may change to; its successor is the first of `later`, if there is one."""
        prompt, mode, params = asked
        thought = params if mode.thought is None else mode.thought.over(params)
        params = params if mode.answer is None else mode.answer.over(params)
        room = min(params.max_tokens, self.inputs.context - len(prompt.tokens))
        max_len, kv = len(prompt.tokens) + room - 1, self._core.kv
        if not kv.fits(max_len):
            raise ValueError(
                f"a text of {max_len} tokens needs {kv.pages_for(max_len)} KV pages; there are "
                f"{kv.pages}: raise kv_memory or lower max_tokens"
            )
        end_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            end_ids |= self._eos_ids
        grammar = None
        if params.grammar is not None:
            grammar = self._grammars.grammar(params.grammar, prompt, mode, end_ids)
        settings = self._speculation(options.speculation, mode)
        own = [None if one is None else one.speculation for one in (mode.answer, mode.thought)]
        by_phase = [settings if one is None else self._speculation(one, mode) for one in own]
        usual, *parts = [
            self._drafting(one, prompt, options, part)
            for one, part in zip(
                (settings, *(by_phase if any(own) else ())), ("", "answer", "thought")
            )
        ]
        drafts = any(part.speculation.drafter != "off" for part in parts or [usual])
        reproducible = settings.accept == "reproducible"
        reproducible |= settings.accept == "auto" and params.seed is not None
        state = None
        if escalated is not None and mode.escalate is not None:
            successor = later[0] if later else None
            thinking = None if later else self._thinking.make(prompt, room, escalated, params)
            keep = mode.escalate.how == "keep"
            target = EscalationTarget(escalated, keep, thinking, successor)
            confidence = Confidence(mode.escalate, to_the_end=successor is not None)
            state = EscalationState(confidence, target)
        scheduling = Scheduling(
            priority=options.priority,
            latency_target=None if mode.latency_ms is None else mode.latency_ms / 1000,
            may_cut_draft="draft" in mode.may_shorten,
            may_cut_groups=self.units.name in mode.may_shorten,
        )
        deadline = None if options.timeout is None else called + options.timeout
        request = Request(
            id=next(self._ids),
            prompt=prompt,
            params=params,
            drafting=usual,
            by_phase=(parts[0], parts[1]) if parts else None,
            mode=mode,
            stopper=Stopper(params, end_ids, room, self._detokenizer(prompt)),
            groups=mode.routed,
            seed=seed,
            max_len=max_len,
            sharing=Sharing(options.memory_key, self._config.rope_length(max_len)),
            end_ids=end_ids,
            rule=self._rule(settings, reproducible),
            reproducible=reproducible,
            thinking=self._thinking.make(prompt, room, mode, params),
            thought_params=None if thought == params else thought,
            grammar=grammar,
            log=AnswerLog(notes=[*mode._held], trace=trace),
            prediction=prompt.prediction if drafts else (),
            share=options.share,
            scheduling=scheduling,
            timing=Timing(called, deadline=deadline),
            escalation=state,
        )
        for part in (usual, *parts):
            self._drafters.use(part.speculation, request.id, request.stopper)
        request.enter_phase()
        return request

    def _drafting(
        self, settings: Speculation, prompt: EncodedPrompt, options: GenerateOptions, part: str
    ) -> Drafting:
        drafter, predicted = self._drafters.make(settings), bool(prompt.prediction)
        off = drafter.drafter == "off"
        policy = self._controller.policy(
            drafter if off else settings, drafter, predicted, options.memory_key, part
        )
        return Drafting(drafter, policy, self._drafters.alone(drafter))

    def _rule(self, settings: Speculation, reproducible: bool) -> Rule:
        if settings.accept == STEPWISE:
            return LossyStepwise(self._line_ends, settings.step_score)
        return RULES["reproducible" if reproducible else settings.accept.replace("auto", "token")]

    @cached_property
    def _line_ends(self) -> frozenset[int]:
        """Tokens that hold a newline."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise ValueError(f"accept={STEPWISE!r} needs a tokenizer, and this checkpoint has none")
        return frozenset(
            i for i in range(tokenizer.vocab_size) if b"\n" in tokenizer.token_bytes(i)
        )

    def _detokenizer(self, prompt: EncodedPrompt) -> Detokenizer | None:
        if self._tokenizer is None:
            return None
        shown = self.inputs.tags.ids(self._tokenizer) if self.inputs.tags else frozenset[int]()
        if prompt.tools:
            shown |= frozenset(self.inputs.tool_calls.tokens.values())
        before = prompt.tokens[-8:] if prompt.continues else []
        return Detokenizer(self._tokenizer, keep=shown, after=before)
