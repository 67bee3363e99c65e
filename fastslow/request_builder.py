"""A call becomes requests: its prompt, parameters, mode and drafts, checked."""

from __future__ import annotations

import itertools
import operator
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import NamedTuple, SupportsIndex

from loguru import logger

from fastslow.choice import Candidate, ChoiceHandle
from fastslow.drafters import DrafterFactory
from fastslow.engine.choosing import ModeChoice, ModeRouter, PromptFacts
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.request import EscalationTarget, Listener, Request
from fastslow.engine.core.step_trace import StepTrace
from fastslow.engine.host.machine import HomeProcess
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import Mode, SamplingParams, Speculation
from fastslow.engine.sampling.accept.accept import RULES
from fastslow.engine.sampling.accept.exact import Rule
from fastslow.engine.sampling.accept.lossy import LossyStepwise
from fastslow.engine.sampling.confidence import Confidence
from fastslow.engine.sampling.rng import sibling_seed, successor_seed
from fastslow.engine.sampling.stop import Stopper
from fastslow.engine.text.detokenizer import Detokenizer
from fastslow.engine.text.messages import check_messages
from fastslow.grammars import Grammars
from fastslow.input_processor import EncodedPrompt, InputProcessor
from fastslow.output import Decided
from fastslow.policies.auto import choose
from fastslow.policies.features import count_words
from fastslow.policies.modes import find_mode, in_either
from fastslow.policies.speculation.controller import SpeculationController
from fastslow.request.options import GenerateOptions, ModeLike, Prompt, SpeculationLike
from fastslow.settings import read_settings
from fastslow.thinking_rules import ThinkingRules

STEPWISE = "lossy-stepwise"


class _ParsedCall(NamedTuple):
    """What a call asks for in one mode, checked."""

    prompt: EncodedPrompt
    params: SamplingParams
    mode: Mode
    settings: Speculation
    prediction: tuple[int, ...]
    called: float
    options: GenerateOptions


class RequestBuilder:
    """Turns a call into requests, not submitted yet.

    Args:
        inputs: reads prompts.
        core: the engine core that will run them.
        drafters: makes drafters.
        controller: decides how far to draft.
        modes: presets by name.
        chooser: chooses a preset for requests of mode "auto".
        usual: the meaning of speculation "auto" where a mode gives none.
    """

    def __init__(
        self,
        inputs: InputProcessor,
        core: EngineCore,
        drafters: DrafterFactory,
        controller: SpeculationController,
        modes: Mapping[str, Mode],
        chooser: ModeRouter,
        usual: SpeculationLike | None,
    ) -> None:
        self.inputs = inputs
        self._core = core
        self._drafters = drafters
        self._controller = controller
        self._modes = modes
        self._chooser = chooser
        self._config = core.model.config
        self._units = RoutedUnits.of(self._config)
        self._tokenizer = inputs.tokenizer
        self._thinking = ThinkingRules(inputs, self._config.vocab_size)
        own_ids = inputs.tokenizer.eos_ids if inputs.tokenizer else frozenset[int]()
        ends = own_ids | frozenset(self._config.eos_ids)
        self._eos_ids = frozenset(token for token in ends if token < self._config.vocab_size)
        if ends > self._eos_ids:
            outside = sorted(ends - self._eos_ids)
            logger.warning("end tokens {} are outside the vocabulary: no answer has them", outside)
        self._grammars = Grammars(inputs, self._config.vocab_size, self._eos_ids)
        self._ids = itertools.count()
        self._home = HomeProcess()
        self._usual = self.speculation(usual, Mode(speculation=Speculation()))

    def mode(
        self, wish: ModeLike | None, prompt: Prompt, decided: Decided | None = None
    ) -> tuple[Mode, ModeChoice | None]:
        """The mode that a call names, gives, or leaves to a chooser; and what was chosen, and why. `decided`:
        what was chosen before, where the answer has begun.

        Raises:
            ValueError: see `find_mode` and `choose`.
        """
        chooser = wish if callable(wish) else self._chooser
        given = self._given_mode(wish)
        if not given.auto:
            return given, None
        if decided is not None:
            before = ModeChoice(decided.mode, decided.why)
            choice = choose(lambda _: before, PromptFacts(""), self._modes)
        else:
            choice = choose(chooser, self._situation(prompt, given.latency_ms), self._modes)
        return in_either(self._modes[choice.mode], given), choice

    def speculation(self, wish: SpeculationLike | None, mode: Mode) -> Speculation:
        """The settings that a wish means, with their drafter made.

        Raises:
            ValueError: an unknown drafter, or one that does not fit the target.
        """
        if isinstance(wish, Speculation):
            settings = wish
        elif wish is None:
            settings = mode.speculation or self._usual
        elif isinstance(wish, Mapping):
            settings = Speculation(**wish)
        elif not isinstance(wish, str):
            kind = type(wish).__name__
            raise ValueError(f"speculation must be a name or Speculation, not {kind}")
        elif wish == "auto":
            settings = mode.speculation or self._usual
        elif wish.endswith(".json"):
            settings = read_settings(wish, self._drafters.folder)
        else:
            settings = Speculation(drafter=wish)
        self._drafters.make(settings)
        return settings

    def check(self, prompt: Prompt, options: GenerateOptions) -> int:
        """Refuse what is seen to be wrong at a glance: nothing is tokenised and no file is read. Returns
        how many answers are asked for, by the mode that is given.

        Raises:
            ValueError: one sentence about what does not fit.
            RuntimeError: this was made in another process.
        """
        self._home.check()
        self.inputs.measure(prompt)
        params = options.sampling_in(self._given_mode(options.mode))
        self.inputs.check_params(params)
        if not isinstance(options.speculation, str | Speculation | None):
            self.speculation(options.speculation, Mode())
        if options.answered is not None:
            options.answered.check(self._config.vocab_size, self.inputs.context)
        return params.n

    def build(self, prompt: Prompt, options: GenerateOptions, called: float) -> list[ChoiceHandle]:
        """Check a prompt, and make one handle for each of its n answers.

        Args:
            called: when the call came, of `time.monotonic`.

        Raises:
            ValueError: one sentence about what does not fit.
            RuntimeError: this was made in another process.
        """
        self._home.check()
        self.inputs.measure(prompt)
        answered = options.answered
        mode, choice = self.mode(options.mode, prompt, answered.chosen if answered else None)
        modes, escalated = [mode], None
        if mode.escalate is not None:
            escalated, _ = self.mode(mode.escalate.to, prompt)
            if mode.escalate.how == "restart":
                modes.append(escalated)
        calls = [self._parse(prompt, options, called, one) for one in modes]
        drawn = calls[0].params
        if answered is not None:
            answered.check_count(drawn.n)
        seed = secrets.randbits(63) if drawn.seed is None else drawn.seed
        return [
            ChoiceHandle(
                partial(self._candidates, calls, escalated, sibling_seed(seed, i), i),
                self.inputs.tags,
                self._units,
                choice,
                called,
                i,
            )
            for i in range(drawn.n)
        ]

    def encoded(self, prompt: Prompt, options: GenerateOptions) -> EncodedPrompt:
        """The prompt of a call alone, as the request would read it.

        Raises:
            ValueError: one sentence about what does not fit.
        """
        mode, _ = self.mode(options.mode, prompt)
        return self._encode(prompt, options, mode)

    def _encode(self, prompt: Prompt, options: GenerateOptions, mode: Mode) -> EncodedPrompt:
        return self.inputs.encode(
            prompt, mode, options.allow_special, options.chat_template_kwargs, options.keep_thoughts
        )

    def _given_mode(self, wish: ModeLike | None) -> Mode:
        """The mode that a call names or gives; one that chooses, where it gives a function."""
        if callable(wish):
            return Mode(auto=True)
        return find_mode("deep" if wish is None else wish, self._modes, self._units)

    def _parse(
        self, prompt: Prompt, options: GenerateOptions, called: float, mode: Mode
    ) -> _ParsedCall:
        params = options.sampling_in(mode)
        self.inputs.check_params(params)
        encoded = self._encode(prompt, options, mode)
        settings = self.speculation(options.speculation, mode)
        predicted = self.inputs.prediction(options.prediction)
        return _ParsedCall(encoded, params, mode, settings, predicted, called, options)

    def _candidates(
        self,
        calls: Sequence[_ParsedCall],
        escalated: Mode | None,
        seed: int,
        index: int,
        listener: Listener,
    ) -> list[Candidate]:
        """The request, and the one that replaces it where its confidence falls, if the mode restarts."""
        first, *others = calls
        trace = StepTrace(self._units) if first.options.trace else None
        own = partial(self._request, listener=listener, trace=trace)
        later = [own(one, successor_seed(seed)) for one in others]
        escalation = None
        if first.mode.escalate is not None and escalated is not None:
            keep, successor = first.mode.escalate.how == "keep", later[0] if later else None
            room = self._room(first)
            thinking = None if later else self._thinking.make(first.prompt, room, escalated)
            escalation = EscalationTarget(
                escalated.name, escalated.routed, keep, thinking, successor
            )
        requests = [own(first, seed, escalation=escalation), *later]
        if (answered := first.options.answered) is not None and answered.begun(index):
            answered.begin(requests[0], index, first.mode, self._room(first), self._units)
        return [Candidate(r, one.prompt, one.mode) for r, one in zip(requests, calls)]

    def _situation(self, prompt: Prompt, latency_ms: float | None) -> PromptFacts:
        """What a chooser sees of a prompt. Invalid prompts are rejected later, by `encode`."""
        turns, every = 0, ""
        if isinstance(prompt, str):
            every = text = prompt
        elif prompt and all(isinstance(part, Mapping) for part in prompt):
            chat = [(m["role"], m["content"]) for m in check_messages(prompt)]  # type: ignore[arg-type]
            every = " ".join(content for _, content in chat)
            text = next((content for role, content in reversed(chat) if role == "user"), every)
            turns = max(0, sum(role != "system" for role, _ in chat) - 1)
        else:
            ids = [operator.index(x) for x in prompt if isinstance(x, SupportsIndex)]
            every = text = self._tokenizer.decode(ids) if self._tokenizer is not None else ""
        busy = self._core.scheduler.busy
        return PromptFacts(text, turns, count_words(every), latency_ms, busy)

    def _room(self, call: _ParsedCall) -> int:
        """Most tokens of the answer."""
        return min(call.params.max_tokens, self.inputs.context - len(call.prompt.tokens))

    def _request(
        self,
        call: _ParsedCall,
        seed: int,
        listener: Listener,
        trace: StepTrace | None,
        escalation: EscalationTarget | None = None,
    ) -> Request:
        prompt, params, mode, settings = call[:4]
        timeout = call.options.timeout
        room = self._room(call)
        max_len = len(prompt.tokens) + room - 1
        kv = self._core.kv
        if not kv.fits(max_len):
            raise ValueError(
                f"a text of {max_len} tokens needs {kv.pages_for(max_len)} KV pages; there are "
                f"{kv.pages}: raise kv_memory or lower max_tokens"
            )
        end_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            end_ids |= self._eos_ids
        grammar = None
        if params.grammar_spec is not None:
            grammar = self._grammars.grammar(params.grammar_spec, prompt, mode, end_ids)
        drafter = self._drafters.make(settings)
        drafts = drafter.drafter != "off"
        reproducible = settings.accept == "reproducible"
        reproducible |= settings.accept == "auto" and params.seed is not None
        confidence = None
        if escalation is not None and mode.escalate is not None:
            confidence = Confidence(mode.escalate, to_the_end=escalation.successor is not None)
        request = Request(
            id=next(self._ids),
            tokens=list(prompt.tokens),
            prompt_length=len(prompt.tokens),
            params=params,
            speculation=drafter,
            own_drafter=self._drafters.alone(drafter),
            mode=mode.name,
            called=call.called,
            policy=self._controller.policy(
                settings if drafts else drafter, drafter, bool(call.prediction)
            ),
            stopper=Stopper(params, end_ids, room, self._detokenizer(prompt)),
            groups=mode.routed,
            seed=seed,
            max_len=max_len,
            rope_length=self._config.rope_length(max_len),
            memory_key=call.options.memory_key,
            end_ids=end_ids,
            rule=self._rule(settings, reproducible),
            reproducible=reproducible,
            scored=settings.accept == STEPWISE,
            thinking=self._thinking.make(prompt, room, mode),
            grammar=grammar,
            listener=listener,
            trace=trace,
            prediction=call.prediction if drafts else (),
            priority=call.options.priority,
            deadline=None if timeout is None else call.called + timeout,
            latency_target=None if mode.latency_ms is None else mode.latency_ms / 1000,
            may_cut_draft="draft" in mode.may_shorten,
            may_cut_groups=self._units.name in mode.may_shorten,
            confidence=confidence,
            escape=escalation,
        )
        self._drafters.use(drafter, request)
        return request

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
        before = prompt.tokens[-8:] if prompt.goes_on else []
        return Detokenizer(self._tokenizer, keep=shown, after=before)
