"""Requests added, cancelled, preempted, switched and failed in any order: nothing leaks or differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from checkpoints import stub
from engine_tools import RandomDraft, answer, cache_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schedule_tools import request as new_request

from fastslow.draft.model.draft import ModelDraft
from fastslow.draft.model.kv import BorrowedKV, OwnKV
from fastslow.draft.ngram import NgramDraft
from fastslow.draft.router import DrafterRouter
from fastslow.draft.several import FallbackDrafter
from fastslow.engine.core.engine_core import EngineCore
from fastslow.engine.core.latency_budget import PATIENCE, RunEverything
from fastslow.engine.core.request import EscalationState, EscalationTarget, Request
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import best_tokens
from fastslow.engine.params import Escalation, Mode, SamplingParams, Speculation
from fastslow.engine.rows import ALL_GROUPS, Rows
from fastslow.engine.sampling.confidence import Confidence
from fastslow.engine.sampling.stop import Stopper
from fastslow.engine.types import Drafter, ModelOutput
from fastslow.policies.speculation.planner import FixedLength

EOS = 2
LETTERS = (3, 4, 5, 6)
STORY = [LETTERS[n * n % 7 % 4] for n in range(16)]  # prompts start alike: prefixes are shared
DRAFTERS = ("off", "ngram", "random", "self", "model", "ngram+self")
FAULTS = ("forward", "propose", "commit", "nan")


def mixed(state: int, token: int, position: int, groups: int) -> int:
    """Add one more row to the digest of all that a row has read."""
    return (state * 31 + token * 7 + position * 3 + (groups + 2) * 13) % 1_000_003


def following(state: int) -> int:
    return EOS if state % 37 == 0 else LETTERS[state // 37 % 4]


def sure(state: int) -> bool:
    """True where the model is sure of what follows."""
    return state // 148 % 4 > 0


class MarkerModel:
    """Writes (token, position, groups) as the key of each row; what comes next depends on all of
    the keys that the row reads, so one wrong, lost or stale row changes the answer."""

    dtype = torch.float32
    device = torch.device("cpu")
    storage = KVStorage

    def __init__(self) -> None:
        self.config = stub("marker", 7, 3, 64, groups=2)
        self.fault: str | None = None

    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        states: list[int] = []
        for b, context in enumerate(rows.contexts):
            start, stop = int(rows.starts[b]), int(rows.starts[b + 1])
            before = 0
            for key in kv.k[0][torch.from_numpy(context), 0].tolist():
                before = mixed(before, *map(int, key))
            for i in range(start, stop):
                parent = int(rows.parents[i])
                above = before if parent < 0 else states[start + parent]
                place = int(rows.positions[i])
                states.append(mixed(above, int(rows.tokens[i]), place, int(rows.groups[i])))
        keys = torch.tensor([rows.tokens.tolist(), rows.positions.tolist(), rows.groups.tolist()])
        kv.k[0][torch.from_numpy(rows.slots), 0] = keys.T.float()
        logits_MV = torch.zeros(len(rows.outputs), self.config.vocab_size)
        for m, row in enumerate(rows.outputs):
            logits_MV[m, following(states[row])] = 9.0 if sure(states[row]) else 1.0
        fault, self.fault = self.fault, None
        if fault == "forward":
            raise RuntimeError("the device is gone")
        if fault == "nan" and len(logits_MV):
            logits_MV[0] = torch.nan
        return ModelOutput(logits_MV, None, best_tokens(logits_MV, rows.only_best))

    def layer_subset(self, layers: Sequence[int]) -> MarkerModel:
        raise ValueError("it has one layer")


def fail_once(drafter: Drafter, method: str) -> None:
    """Have a drafter fail the next time that it is called so, after it has done its work."""
    real = getattr(drafter, method)

    def failing(*arguments: Any) -> None:
        setattr(drafter, method, real)
        real(*arguments)
        raise RuntimeError(f"the drafter fails to {method}")

    setattr(drafter, method, failing)


class Slow(RunEverything):
    """Steps that take 10 ms for each row, and more with more groups."""

    def seconds(self, groups: int | None, rows: int) -> float:
        return rows * (0.01 + 0.001 * (2 if groups is None else groups))

    def draft_seconds(self, drafter: object, key: str | None, asked: int) -> float | None:
        return 0.005


class Doubt(NamedTuple):
    """Leave the mode after `window` unsure tokens in a row, for other groups."""

    window: int
    to: int | None
    keep: bool

    def fields(self) -> dict[str, Any]:
        """Of a request."""
        # a window of none but unsure tokens has a mean of 0.31, one with a sure token at least 0.55
        watched = Confidence(Escalation(below=0.4, window=self.window))
        return {"escalation": EscalationState(watched, EscalationTarget(Mode(name="other", groups=self.to), self.keep))}


class Engine:
    """A core with every drafter, driven as the engine's thread drives it."""

    def __init__(self, pages: int, rows: int, running: int) -> None:
        self.model = MarkerModel()
        model: Any = self.model
        small: Any = MarkerModel()
        self.kv = cache_for(model, pages, page_size=2)
        self.small_kv = cache_for(small, 20, page_size=2)
        borrowed = ModelDraft(model, BorrowedKV(self.kv), groups=0)
        made: dict[str, Drafter] = {
            "ngram": NgramDraft(), "random": RandomDraft(), "self": borrowed,
            "model": ModelDraft(small, OwnKV(self.small_kv)),
            "ngram+self": FallbackDrafter(NgramDraft(), borrowed),
        }  # fmt: skip
        self.drafter = DrafterRouter({Speculation(drafter=name): d for name, d in made.items()})
        self.core = EngineCore(model, self.kv, self.drafter, rows, running, Slow())
        self.asked: list[tuple[Request, int | None, Doubt | None]] = []
        self.told: dict[int, int] = {}

    def add(
        self, shared: int, own: list[int], room: int, turn: int, groups: int | None,
        doubt: Doubt | None, target: float | None,
    ) -> None:  # fmt: skip
        drafter = DRAFTERS[(turn + len(self.asked)) % len(DRAFTERS)]
        ends, tokens = frozenset({EOS}), [*STORY[:shared], *own]
        stopper = Stopper(SamplingParams(max_tokens=room), ends, room, None)
        request = new_request(
            len(self.asked), len(tokens), room, tokens=tokens, groups=groups, end_ids=ends,
            speculation=Speculation(drafter=drafter), stopper=stopper, latency_target=target,
            policy=FixedLength(0 if drafter == "off" else 4), listener=self._hear,
            share="one" if shared % 3 else "other",
            **(doubt.fields() if doubt else {}),
        )  # fmt: skip
        self.asked.append((request, groups, doubt))
        self.core.add(request)

    def cancel(self, number: int) -> None:
        if self.asked:
            request = self.asked[number % len(self.asked)][0]
            self.core.end([r for r in [request] if not r.done], "cancelled", None)
            self.check()

    def break_next(self, fault: str) -> None:
        """The next chance to fail like this is taken."""
        if fault in ("forward", "nan"):
            self.model.fault = fault
        else:
            fail_once(self.drafter, fault)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            try:
                self.core.step()
            except RuntimeError as error:
                self.core.end(list(self.core.scheduler.running), "error", error)
            self.check()

    def drain(self) -> None:
        for _ in range(2000):
            if self.core.idle:
                break
            self.step()
        assert self.core.idle, "the engine does not come to an end"
        for kv in (self.kv, self.small_kv):
            assert not kv.requests and kv.free_pages == kv.pages, "pages leaked"
        assert all(self.told[r.id] == 1 for r, *_ in self.asked), "an end is told once"

    def check(self) -> None:
        self.kv.check_integrity()
        self.small_kv.check_integrity()
        running = self.core.scheduler.running
        longest = PATIENCE + len(running) + 1  # others' turns may come first
        assert all(r.scheduling.skipped_steps <= longest for r in running), "somebody starves"

    def _hear(self, request: Request) -> None:
        self.told[request.id] = self.told.get(request.id, 0) + request.done


def state_of(text: Sequence[int], groups: Sequence[int | None]) -> int:
    """After a text, by the groups that each of its rows ran."""
    state = 0
    for place, (token, g) in enumerate(zip(text, groups, strict=True)):
        state = mixed(state, token, place, ALL_GROUPS if g is None else g)
    return state


def plain(request: Request, groups: int | None, doubt: Doubt | None) -> list[int]:
    """Compute a MarkerModel's answer from the text alone."""
    text = list(request.tokens[: request.prompt_length])
    unsure, fell = 0, None  # tokens in a row; length of the text when it was left
    while len(text) < request.max_len + 1:
        ran = [groups] * len(text)
        if doubt is not None and fell is not None:
            early = fell - 1 if doubt.keep else 0  # its last token had not run yet
            ran = [groups] * early + [doubt.to] * (len(text) - early)
        state = state_of(text, ran)
        text.append(following(state))
        unsure = 0 if sure(state) else unsure + 1
        if text[-1] == EOS:
            break
        if doubt is not None and fell is None and unsure >= doubt.window:
            fell = len(text)
    return text[request.prompt_length :]


groups_of = st.sampled_from([None, None, 0, 1])
additions = st.tuples(
    st.just("add"),
    st.integers(1, 14),  # tokens of the common story
    st.lists(st.sampled_from(LETTERS), max_size=2),  # and of its own
    st.integers(1, 10).map(lambda n: 11 - n),  # room; a simple case has much, else nothing is drafted
    st.integers(0, len(DRAFTERS) - 1),  # from its number on: a simple case has all drafters
    groups_of,
    st.one_of(st.none(), st.builds(Doubt, st.integers(1, 2), groups_of, st.booleans())),
    st.sampled_from([None, None, 0.005, 0.06]),  # a target: tighter than any step, or of some rows
)
operations = st.one_of(
    additions, additions, st.tuples(st.just("step"), st.integers(1, 4)),
    st.tuples(st.just("step"), st.integers(1, 4)), st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("break_next"), st.sampled_from(FAULTS)),
)  # fmt: skip


@pytest.mark.drafts(60, 15, nodes=None)
@settings(suppress_health_check=list(HealthCheck))
@given(
    first=st.lists(additions, min_size=5, max_size=6), schedule=st.lists(operations, min_size=4, max_size=30),
    pages=st.integers(13, 20), rows=st.sampled_from([3, 6, 64]), running=st.sampled_from([2, 8]),
)  # fmt: skip
def test_any_schedule(first: list[Any], schedule: list[Any], pages: int, rows: int, running: int) -> None:
    engine = Engine(pages, rows, running)
    for operation, *details in first + schedule:
        getattr(engine, operation)(*details)
    engine.drain()
    for request, groups, doubt in engine.asked:
        expected = plain(request, groups, doubt)
        got = answer(request)
        if request.stopper.reason in ("cancelled", "error") or request.error is not None:
            assert got == expected[: len(got)]
        else:
            assert got == expected and request.stopper.reason == ("stop" if got[-1] == EOS else "length")
