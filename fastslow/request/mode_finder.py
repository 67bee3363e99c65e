"""The mode of a call: as it is named, or as a router takes it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, SupportsIndex

from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import Mode
from fastslow.engine.sampling.confidence import PromptProbe
from fastslow.engine.text.messages import check_messages
from fastslow.engine.text.vocabulary import Tokenizer
from fastslow.output import Decided
from fastslow.policies.auto import choose
from fastslow.policies.features import count_words
from fastslow.policies.learned_auto import LearnedModeRouter
from fastslow.policies.mode_router import ModeChoice, ModeRouter, PromptFacts
from fastslow.policies.modes import fields_of, find_mode, in_either
from fastslow.request.options import ModeLike, Prompt

BOUNDS = "thinking_budget", "turn_budget", "answer_room", "bounds"  # of thoughts


class Chosen(NamedTuple):
    """A mode, and why a router took it; None where the call names it. A probe may take one of the `later` ones, once
    the model has read the prompt."""

    mode: Mode
    why: ModeChoice | None = None
    probe: Callable[[], PromptProbe] | None = None
    later: Sequence[Mode] = ()


class ModeFinder:
    """Finds the modes of calls. `busy`: requests in the engine, as a share of those that run at a time."""

    def __init__(
        self,
        presets: Mapping[str, Mode],
        router: ModeRouter,
        units: RoutedUnits,
        tokenizer: Tokenizer | None,
        busy: Callable[[], float],
    ) -> None:
        self._presets = presets
        self._router = router
        self._units = units
        self._tokenizer = tokenizer
        self._busy = busy

    def given(self, wish: ModeLike | None) -> Mode:
        """The mode that a call names or gives; `auto` where a router chooses later."""
        if callable(wish):
            return Mode(auto=True)
        return find_mode("deep" if wish is None else wish, self._presets, self._units)

    def find(self, wish: ModeLike | None, prompt: Prompt, decided: Decided | None = None) -> Chosen:
        """The mode of a prompt. `decided`: what was chosen before, where the answer has begun."""
        given = self.given(wish)
        if not given.auto:
            return Chosen(given)
        usual = self._usual(wish)
        if decided is not None:
            before = ModeChoice(decided.mode, decided.why)
            choice = choose(lambda _: before, PromptFacts(""), self._presets)
        else:
            router = wish if callable(wish) else self._router
            facts = self._facts(prompt, given.latency_ms)
            choice = choose(router, facts, self._presets)
            if isinstance(router, LearnedModeRouter):
                for name in router.between[1:]:
                    choose(lambda _, name=name: name, facts, self._presets)  # type: ignore[misc]
                first, *later = (in_either(self._presets[n], given, usual) for n in router.between)
                if unsure := [mode.name for mode in (first, *later) if mode.escalate]:
                    raise ValueError(
                        f"mode {unsure[0]!r} has escalate, which a learned auto does not follow: leave it out of "
                        f"the modes that auto chooses from, {', '.join(router.between)}"
                    )
                probe = partial(
                    PromptProbe, router.layer, len(router.weights[0]), router.judge(facts)
                )
                return Chosen(first, choice, probe, later)
        return Chosen(in_either(self._presets[choice.mode], given, usual), choice)

    def escalated(self, to: str, wish: ModeLike | None, prompt: Prompt) -> Mode:
        """The mode that a call's text goes on in. The fields of `auto` hold in it, and of another mode those bounds of
        thoughts that the call itself gives; a preset's own are the preset's."""
        given, usual = self.given(wish), self._usual(wish)
        if not given.auto:
            usual = Mode()
            own = fields_of(wish) if isinstance(wish, Mode | Mapping) else {}
            given = Mode(**{name: own[name] for name in BOUNDS if own.get(name) is not None})
        return in_either(self.find(to, prompt).mode, given, usual)

    def _usual(self, wish: ModeLike | None) -> Mode:
        """The preset that a call begins with, as it is."""
        base = fields_of(wish).get("base") if isinstance(wish, Mode | Mapping) else wish
        return self.given(base) if isinstance(base, str) else Mode()

    def _facts(self, prompt: Prompt, latency_ms: float | None) -> PromptFacts:
        """Invalid prompts are refused later, by `encode`."""
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
        return PromptFacts(text, turns, count_words(every), latency_ms, self._busy())
