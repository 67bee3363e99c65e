"""Random requests over one engine: each must have the answer, bit for bit, that it has alone.

Alone is: no drafts, no cached prefix, the prompt in one chunk. Everything else is drawn from a seed: who drafts, and how
much; sampling; prompts that begin as earlier texts do; answers that the call brings a part of; memory keys; fewer experts
and changes to others; pages, their size and the rows of a step; pins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import family_tools
import pytest
import torch
from checkpoints import write
from engine_tools import Ask, Bench, Make, OracleDraft, RandomDraft, answer, cache_for
from torch import Tensor

from fastslow.draft.head.growing import Growth
from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.mtp.draft import MtpDraft
from fastslow.draft.ngram import NgramDraft
from fastslow.draft.router import DrafterRouter
from fastslow.draft.suffix.draft import SuffixDraft
from fastslow.draft.suffix.sources import AnswerMemory
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.request import EscalationState, EscalationTarget, Request
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.kv.state import running
from fastslow.engine.kv.state.layout import UNFOLDED
from fastslow.engine.model.base import Model, kv_cache_for
from fastslow.engine.params import Escalation, Mode, SamplingParams, Speculation
from fastslow.engine.sampling.confidence import Confidence
from fastslow.engine.types import Tree

ROUND = 20  # requests of one engine
LONGEST = 56  # prompt
ROOM = 20  # of an answer
NODES = 8
SLOTS = 96, 128, 256  # of an engine: the longest request alone, or some
FLOORS = {"drafted": 200, "accepted": 40, "preempted": 2, "cached": 40, "resumed": 4, "pinned": 1, "put off": 5}
FLOORS |= {"sampled": 10, "moved": 5}
FEW_AND_MANY = pytest.mark.parametrize("count", [20, pytest.param(2000, marks=pytest.mark.slow)])  # of requests


def load(
    folder: Path, config: Mapping[str, Any], table: Mapping[str, Tensor], dtype: str = "float32", kernels: bool = False
) -> Model:
    """A checkpoint of these weights, on plain torch or on the CPU kernels."""
    return family_tools.load(write(folder, dict(config), dict(table)), kernels, dtype)


def near(table: Mapping[str, Tensor], by: float = 0.02) -> dict[str, Tensor]:
    """Weights of a model that mostly says the same."""
    random = torch.Generator().manual_seed(1)
    return {
        name: weight + by * weight.abs().mean() * torch.randn(weight.shape, generator=random)
        for name, weight in table.items()
    }


@dataclass(frozen=True)
class Wish:
    """A request. answered: tokens of its answer that the call brings. below: the confidence under which it changes to
    `to` experts; 0: it never does. keep: what it has computed stays."""

    ask: Ask
    answered: int = 0
    key: str | None = None
    below: float = 0.0
    to: int | None = None
    keep: bool = False

    @property
    def alone(self) -> Wish:
        return replace(self, ask=self.ask.plain, answered=0, key=None)


class LayerFuzz:
    """Random requests for a model. kin: drafts for it. plain: says what is right, within rounding; None: the model
    itself, to the bit. counts: what has happened so far."""

    def __init__(self, model: Model, kin: Model, plain: Model | None = None) -> None:
        self.model, routed = model, model.config.routed
        self.plain = model if plain is None else plain
        self.most = 0 if routed is None else routed.router.units
        own = model if routed else model.layer_subset(range(len(model.config.layers) - 1))
        fewer = 1 if routed else None
        self.known: dict[int, list[int]] = {}  # answers that an oracle tells
        drafters: dict[str, Make] = {
            "ngram": lambda kv: NgramDraft(2, 1),
            "suffix": lambda kv: SuffixDraft(memory=AnswerMemory(), min_score=0.0),
            "model": lambda kv: ModelDraft(kin, OwnKV(cache_for(kin, 48))),
            "self": lambda kv: ModelDraft(own, BorrowedKV(kv), fewer),
            "random": lambda kv: RandomDraft(),
            "forked": lambda kv: OracleDraft(self.known, lambda place: place % 7 == 5, forked=True),
        }
        if model.mtp is not None:
            drafters["mtp"] = lambda kv: MtpDraft(model, kv)
            drafters["mtp tree"] = lambda kv: MtpDraft(model, kv, Growth(3))
        self.bench = Bench(model, drafters)
        self.counts: Counter[str] = Counter()
        self._earlier: list[tuple[list[int], Wish]] = []  # texts, and who wished for them
        self._alone: dict[Wish, Request] = {}

    @classmethod
    def of(
        cls, folder: Path, config: Mapping[str, Any], table: Mapping[str, Tensor], kernels: bool = False
    ) -> LayerFuzz:
        """For a checkpoint of these weights, in float32."""
        both = {"own": table, "kin": near(table)}
        return cls(*(load(folder / name, config, each, kernels=kernels) for name, each in both.items()))

    def check(self, requests: int, seed: int = 0) -> Counter[str]:
        """Run so many requests. Enough must happen on the way: FLOORS for 60 of them."""
        draws = Random(seed)
        for n in range(0, requests, ROUND):
            self._round(draws, SLOTS[n // ROUND % len(SLOTS)], min(ROUND, requests - n))
        floors = dict.fromkeys((f"drafted by {name}" for name in self.bench.drafters), 2)
        floors |= FLOORS | ({"fewer": 10 if self.most > 2 else 5, "restarted": 2} if self.most > 1 else {})
        few = {n: self.counts[n] for n, least in floors.items() if self.counts[n] < least * requests // 60}
        assert not few, f"too little happened: {few} of {self.counts}"
        return self.counts

    def _round(self, draws: Random, slots: int, requests: int) -> None:
        size, slots = draws.choice((1, 4, 4, 16)), slots * self.model.storage.dp_ranks  # of which a request is on one
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(running, "EVERY", draws.choice((8, 256)))
            places, snapshots = draws.choice((3, 6)), draws.choice((2, 16))
            rows, layout, ring = draws.randint(1, 64), self.model.config.state_layout, 0
            kind = self.model.storage
            if kind.has_windows and layout.running and layout.window and size >= kind.tile:
                ring = 2 + -(-(layout.window + rows + UNFOLDED) // size)
            kv = kv_cache_for(self.model, slots // size, size, places=places, snapshots=snapshots, ring=ring)
        made = {Speculation(drafter=name): make(kv) for name, make in self.bench.drafters.items()}
        core = EngineCore(self.model, kv, DrafterRouter(made), rows, 6)
        core._masks.unfollowed = partial(self._put_off, Random(slots))  # type: ignore[method-assign]
        self.known.clear()
        asked: list[tuple[Wish, Request]] = []
        often = [name for name in self.bench.drafters for _ in range(1 + (name in ("model", "self")))]
        names = draws.sample(("off", *often, *often, "forked", "suffix", "suffix"), ROUND)[:requests]
        for number, name in enumerate(names):
            wish = self._wish(draws, name)
            alone = self._answered_alone(wish)
            self._earlier.append((alone.tokens, wish))
            self.known[number] = alone.tokens
            request = self._request(number, wish)
            request.read_answered(answer(alone)[: wish.answered])
            core.add(request)
            asked.append((wish, request))
            for _ in range(draws.choice((0, 0, 0, 0, 1, 6))):
                core.step()
            self._pin(draws, kv, asked)
        for _ in range(4000):
            if core.idle:
                break
            core.step()
            kv.check_integrity()
        kv.pins.clear()
        assert core.idle and not kv.requests and kv.free_pages == kv.pages, "pages leaked"
        for wish, request in asked:
            self._compare(wish, request)

    def _put_off(self, draws: Random, ready: Sequence[Request], trees: Sequence[Tree], _: object) -> set[Request]:
        """Some run their last token again; never by what was sampled."""
        late = {r for r, tree in zip(ready, trees) if draws.random() < 0.05 and tree.probs is None}
        self.counts["put off"] += len(late)
        return late

    def _wish(self, draws: Random, name: str) -> Wish:
        tokens = draws.choices(range(3, draws.choice((6, self.model.config.vocab_size))), k=draws.randint(1, 32))
        groups = draws.choice((None, None, *range(1, self.most))) if self.most > 1 else None
        key, room, sampled = draws.choice((None, None, "a", "b")), draws.randint(3, ROOM), draws.random() < 0.3
        if self._earlier and draws.random() < 0.75:
            earlier, wish = draws.choice(self._earlier[-ROUND // 2 :])
            prompt = len(wish.ask.tokens)
            kept = draws.choice((prompt, prompt, len(earlier), draws.randint(1, len(earlier))))
            tokens = (earlier[:kept] + tokens[: draws.choice((0, 0, 1, 6))])[:LONGEST]
            if draws.random() < 0.8:
                groups, key = wish.ask.groups, wish.key
        params = SamplingParams(
            max_tokens=room, ignore_eos=True, temperature=0.7 if sampled else 0.0,
            logprobs=draws.choice((None, None, 1)),
        )  # fmt: skip
        changes = self.most > 1 and draws.random() < 0.15
        rule = "reproducible" if sampled else "token"
        ask = Ask(tuple(tokens), params, name, draws.randint(1, NODES), groups, draws.randrange(3), rule=rule)
        return Wish(
            ask, 0 if changes else draws.choice((0, 0, draws.randint(1, room))), key,
            draws.choice((0.3, 0.9)) if changes else 0.0, draws.choice((None, 1)) if changes else None,
            changes and draws.random() < 0.3,
        )  # fmt: skip

    def _request(self, number: int, wish: Wish) -> Request:
        more: dict[str, Any] = {"memory_key": wish.key}
        if wish.below:
            watched = Confidence(Escalation(below=wish.below, window=2))
            more["escalation"] = EscalationState(
                watched, EscalationTarget(Mode(name="other", groups=wish.to), wish.keep)
            )
        return self.bench.request(number, wish.ask, **more)

    def _answered_alone(self, wish: Wish) -> Request:
        if (found := self._alone.get(wish.alone)) is None:
            kv = kv_cache_for(self.plain, 8, 16, False, places=1, snapshots=0)
            core = EngineCore(self.plain, kv, DrafterRouter({}))
            found = self._alone[wish.alone] = self._request(0, wish.alone)
            core.add(found)
            while not core.idle:
                core.step()
        return found

    def _pin(self, draws: Random, kv: KVCache, asked: Sequence[tuple[Wish, Request]]) -> None:
        if draws.random() < 0.2:
            kv.pins.remove(draws.randrange(ROUND))
        read = [request for _, request in asked if request.computed >= request.prompt_length]
        if read and draws.random() < 0.4:
            request, spare = draws.choice(read), kv.pages_for(LONGEST + ROOM + NODES)
            kv.pins.remove(request.id)
            text, for_all = request.tokens[: request.prompt_length], draws.choice((None, request.shared_root))
            try:
                self.counts["pinned"] += kv.pins.add(request.id, text, request.root, spare, for_all) > 0
            except ValueError:
                self.counts["not pinned"] += 1

    def _compare(self, wish: Wish, request: Request) -> None:
        alone, stats = self._answered_alone(wish), request.spec_stats
        assert request.error is None and request.stopper.reason == "length", wish
        assert answer(request) == answer(alone), wish
        each = zip(request.log.logprobs, alone.log.logprobs, strict=True)
        slack = 0.0 if self.plain is self.model else 1e-3
        assert all(found == pytest.approx(wanted, rel=0, abs=slack) for found, wanted in each), wish
        counts = self.counts
        counts += Counter(
            requests=1,
            drafted=stats.drafted,
            accepted=stats.accepted,
            preempted=stats.preemptions,
            cached=stats.cached,
            resumed=wish.answered > 1,
            restarted=request.escalated,
            sampled=wish.ask.params.temperature > 0,
            fewer=wish.ask.groups is not None,
            moved=stats.accepted if wish.ask.drafter == "forked" else 0,
        )
        for name, drafted in stats.by_drafter.items():
            counts[f"drafted by {name}"] += drafted.drafted
            counts[f"accepted of {name}"] += drafted.accepted
