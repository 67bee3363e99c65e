"""A call becomes requests: its prompt, parameters, mode and drafts, checked. Composes, as `llm.py`."""

from __future__ import annotations

import itertools
import operator
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, SupportsIndex

from loguru import logger

from fastslow.call import ModeWish, sampling_in
from fastslow.drafters import DrafterFactory
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.request import Escape, Request
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.params import Escalation, Mode, SamplingParams, Speculation
from fastslow.engine.sampling.accept.accept import RULES
from fastslow.engine.sampling.accept.lossy import LossyStepwise
from fastslow.engine.sampling.accept.rule import Rule
from fastslow.engine.sampling.confidence import Confidence
from fastslow.engine.sampling.rng import sibling_seed
from fastslow.engine.sampling.stop import Stopper
from fastslow.engine.sampling.thinking import Thinking
from fastslow.engine.text.detokenizer import Detokenizer
from fastslow.engine.text.templates import ChatTemplate
from fastslow.engine.text.thought import TagTokens, ThoughtTags
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.engine.types import Chooser, Policy, Situation
from fastslow.handle import Candidate, RequestHandle
from fastslow.input_processor import EncodedPrompt, InputProcessor, Prompt
from fastslow.policies.auto import BUILT_IN, choose
from fastslow.policies.clock import Clock
from fastslow.policies.features import count_words
from fastslow.policies.length import AdaptiveLength, FixedLength
from fastslow.policies.modes import find_mode, in_either
from fastslow.policies.odds import Odds
from fastslow.policies.thinking import ThinkingBudget
from fastslow.settings import read_settings

MOST_NODES = 24  # of an adaptive draft
STEPWISE = "lossy-stepwise"


class _Asked(NamedTuple):
    entry: EncodedPrompt
    params: SamplingParams
    mode: Mode
    settings: Speculation


class RequestBuilder:
    """Turns what callers ask for into requests; nothing is submitted here.

    Args:
        config: of the target.
        tokenizer: None for a checkpoint without one.
        template: of the checkpoint's chat.
        tags: between which the model thinks, if it does.
        context: most tokens of prompt and answer together.
        core: whose pages the requests will take.
        drafting: makes the drafters.
        clock: what steps take.
        modes: presets by name.

    Attributes:
        door: where prompts are read.
        usual: what speculation "auto" means where a mode does not say.
        chooser: what takes a mode for requests of mode "auto".
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        template: ChatTemplate | None,
        tags: ThoughtTags | None,
        context: int,
        core: EngineCore,
        drafting: DrafterFactory,
        clock: Clock,
        modes: Mapping[str, Mode],
    ) -> None:
        self.door = InputProcessor(config, tokenizer, template, tags, context)
        self.usual = Speculation()
        self.chooser: Chooser = BUILT_IN
        self._config = config
        self._tokenizer = tokenizer
        self._tags = tags
        self._thoughts = TagTokens(tokenizer, tags) if tokenizer and tags else None
        self._core = core
        self._drafting = drafting
        self._clock = clock
        self._modes = modes
        self._ids = itertools.count()
        self._odds: dict[Speculation, Odds] = {}
        self._said: set[str] = set()

    def mode(self, wish: ModeWish, prompt: Prompt) -> tuple[Mode, str]:
        """The mode that a call names, brings, or leaves to a chooser; and why, where it was chosen.

        Raises:
            ValueError: see `find_mode` and `choose`.
        """
        chooser, given = self.chooser, Mode(auto=True)
        if callable(wish):
            chooser = wish
        else:
            given = find_mode(wish, self._modes, self._config.groups)
        if not given.auto:
            return given, ""
        choice = choose(chooser, self._situation(prompt, given.latency_ms), self._modes)
        return in_either(self._modes[choice.mode], given), choice.why

    def speculation(self, wish: str | Speculation, mode: Mode) -> Speculation:
        """The settings that a wish means, with their drafter made.

        Raises:
            ValueError: an unknown drafter, or one that does not fit the target.
        """
        if isinstance(wish, Speculation):
            settings = wish
        elif not isinstance(wish, str):
            kind = type(wish).__name__
            raise ValueError(f"speculation must be a name or Speculation, not {kind}")
        elif wish == "auto":
            settings = mode.speculation or self.usual
        elif wish.endswith(".json"):
            settings = read_settings(wish)
        else:
            settings = Speculation(drafter=wish)
        self._drafting.make(settings)
        return settings

    def job(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        wish: ModeWish,
        speculation: str | Speculation,
        streaming: bool = False,
    ) -> list[RequestHandle]:
        """A checked prompt as one handle for each of its n answers.

        Raises:
            ValueError: one sentence about what does not fit.
        """
        mode, decision = self.mode(wish, prompt)
        modes, escape = [mode], None
        if mode.escalate is not None:
            escape, _ = self.mode(mode.escalate.to, prompt)
            if mode.escalate.how == "restart":
                modes.append(escape)
        asked = [self._asked(prompt, params, one, speculation) for one in modes]
        drawn = asked[0].params
        seed = secrets.randbits(63) if drawn.seed is None else drawn.seed
        handles = []
        for i in range(drawn.n):
            attempts = [self._attempt(one, sibling_seed(seed, i)) for one in asked]
            if mode.escalate is not None and escape is not None:
                self._watch(attempts, mode.escalate, escape)
            handles.append(RequestHandle(attempts, self._tags, streaming, decision))
        return handles

    def _asked(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        mode: Mode,
        speculation: str | Speculation,
    ) -> _Asked:
        params = sampling_in(mode, params)
        self.door.check_params(params)
        entry = self.door.enter(prompt, mode)
        return _Asked(entry, params, mode, self.speculation(speculation, mode))

    def _attempt(self, asked: _Asked, seed: int) -> Candidate:
        mode, entry = asked.mode, asked.entry
        request = self._request(*asked, seed)
        return Candidate(request, entry, mode.name, entry.opened, mode.thinking != "off")

    def _watch(self, attempts: Sequence[Candidate], settings: Escalation, escape: Mode) -> None:
        """Let the first attempt be left where it is unsure: for the second, or for another mode's
        groups and laws of thinking."""
        first, successor, thinking = attempts[0].request, None, None
        if len(attempts) > 1:
            successor = attempts[1].request
        else:
            room = first.max_len + 1 - first.prompt_length
            thinking = self._thinking(attempts[0].entry, escape, room)
        first.confidence = Confidence(settings, to_the_end=successor is not None)
        keep = settings.how == "keep"
        first.escape = Escape(escape.name, escape.groups, keep, thinking, successor)

    def _situation(self, prompt: Prompt, latency_ms: float | None) -> Situation:
        """What a chooser may see of a prompt; what is wrong with it is found out later."""
        turns, every = 0, ""
        if isinstance(prompt, str):
            every = text = prompt
        elif prompt and all(isinstance(part, Mapping) for part in prompt):
            said = [(m.get("role"), str(m.get("content", ""))) for m in prompt]  # type: ignore[union-attr]
            every = " ".join(content for _, content in said)
            text = next((content for role, content in reversed(said) if role == "user"), every)
            turns = max(0, sum(role != "system" for role, _ in said) - 1)
        else:
            ids = [operator.index(x) for x in prompt if isinstance(x, SupportsIndex)]
            every = text = self._tokenizer.decode(ids) if self._tokenizer is not None else ""
        busy = self._core.scheduler.busy
        return Situation(text, turns, count_words(every), latency_ms, busy)

    def _request(
        self,
        entry: EncodedPrompt,
        params: SamplingParams,
        mode: Mode,
        settings: Speculation,
        seed: int,
    ) -> Request:
        room = min(params.max_tokens, self.door.context - len(entry.tokens))
        max_len = len(entry.tokens) + room - 1
        kv = self._core.kv
        if not kv.fits(max_len):
            raise ValueError(
                f"a text of {max_len} tokens needs {kv.pages_for(max_len)} KV pages; there are "
                f"{kv.pages}: raise kv_memory or lower max_tokens"
            )
        end_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            end_ids |= self._eos_ids()
        drafter = self._drafting.make(settings)
        reproducible = settings.accept == "reproducible"
        reproducible |= settings.accept == "auto" and params.seed is not None
        request = Request(
            id=next(self._ids),
            tokens=list(entry.tokens),
            prompt_length=len(entry.tokens),
            params=params,
            speculation=drafter,
            policy=self._length(settings, drafter),
            stopper=Stopper(params, end_ids, room, self._detokenizer(entry)),
            groups=mode.groups,
            seed=seed,
            max_len=max_len,
            end_ids=end_ids,
            rule=self._rule(settings, reproducible),
            reproducible=reproducible,
            scored=settings.accept == STEPWISE,
            target=None if mode.latency_ms is None else mode.latency_ms / 1000,
            may_cut_draft="draft" in mode.may_shorten,
            may_cut_groups="groups" in mode.may_shorten,
            thinking=self._thinking(entry, mode, room),
        )
        request.root = self._core.prefix_root(request, mode.groups)
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

    def _detokenizer(self, entry: EncodedPrompt) -> Detokenizer | None:
        if self._tokenizer is None:
            return None
        shown = self._tags.ids(self._tokenizer) if self._tags else frozenset[int]()
        before = [] if entry.chat else entry.tokens[-8:]
        return Detokenizer(self._tokenizer, keep=shown, after=before)

    def _thinking(self, entry: EncodedPrompt, mode: Mode, room: int) -> Thinking | None:
        """A chat whose mode does not think, and that gives no budget, has a budget of 0."""
        most, phrase = mode.thinking_budget, mode.closing or ""
        if self._thoughts is None:
            if most is not None or mode.early_exit:
                self._say(
                    f"mode {mode.name!r} bounds its thoughts, but this model has no thinking tags: "
                    "name them in fastslow.json or as thinking_tags"
                )
            return None
        if most is None and mode.thinking == "off" and entry.chat:
            most, phrase = 0, ""
        bounded = most is not None or mode.early_exit
        policy = ThinkingBudget(most, mode.thinking_soft, mode.early_exit) if bounded else None
        closing = self._thoughts.closing(phrase)
        if most and most + len(closing) >= room:
            self._say(
                f"mode {mode.name!r}: thinking_budget={most} leaves no room for an answer within "
                f"max_tokens={room}"
            )
        return Thinking(self._thoughts, entry.opened, len(entry.tokens), policy, closing)

    def _say(self, warning: str) -> None:
        """Once each."""
        if warning not in self._said:
            self._said.add(warning)
            logger.warning(warning)

    def _length(self, settings: Speculation, drafter: Speculation) -> Policy:
        if settings.drafter == "off":
            return FixedLength(0)
        if settings.nodes is not None:
            return FixedLength(settings.nodes)
        odds = self._odds.setdefault(drafter, Odds())
        return AdaptiveLength(MOST_NODES, odds, self._clock, drafter)

    def _eos_ids(self) -> frozenset[int]:
        own = frozenset() if self._tokenizer is None else self._tokenizer.eos_ids
        return own | frozenset(self._config.eos_ids)
