"""The step loop: plan, draft, verify, accept, commit."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from loguru import logger

from fastslow.engine.core.latency_budget import SHARE, LatencyBudget, RunEverything
from fastslow.engine.core.request import Request
from fastslow.engine.core.request_parts import KVHistory
from fastslow.engine.core.scheduler import ScheduledChunk, Scheduler
from fastslow.engine.core.stats import EngineLoad, EngineStats, EngineTotals, LoadMeter
from fastslow.engine.core.step.answers import cut_where_over, cut_where_unsure, keep_answered
from fastslow.engine.core.step.drafts import check_trees, cut_drafts, draft_sizes
from fastslow.engine.core.step.layout import (
    StepLayout,
    committed_features,
    lay_rows,
    left_out,
    read_features,
)
from fastslow.engine.core.step.masks import MaskMaker
from fastslow.engine.core.step.probes import ask_probes, keep_ahead, see_prompts, with_probed
from fastslow.engine.core.step.target_probs import note_logprobs, target_probs
from fastslow.engine.core.step.trace import token_sources, trace_step
from fastslow.engine.core.step_budget import StepBudget
from fastslow.engine.kv.cache import KVCache
from fastslow.engine.model.base import Model
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.sampling.accept.accept import accept
from fastslow.engine.sampling.rng import Purpose, stream
from fastslow.engine.sampling.stop import Reason
from fastslow.engine.types import (
    AcceptResult,
    Drafter,
    ModelOutput,
    StepCostModel,
    StepTiming,
    Tree,
)


class EngineCore:
    """Runs requests, from one thread.

    Args:
        model: the target.
        kv: its pages.
        drafter: proposes for the whole batch.
        prompt_rows: most rows of text in a step, over all requests (chunked prefill).
        max_running: most requests in a step.
        cost_model: cuts drafts to what pays over the whole batch; `RunEverything` if None.
    """

    def __init__(
        self,
        model: Model,
        kv: KVCache,
        drafter: Drafter,
        prompt_rows: int = 512,
        max_running: int = 64,
        cost_model: StepCostModel | None = None,
    ) -> None:
        self.cost_model = cost_model or RunEverything()
        self.model = model
        self.kv = kv
        self.drafter = drafter
        latency, budget = LatencyBudget(self.cost_model), StepBudget(self.cost_model)
        self.scheduler = Scheduler(kv, prompt_rows, max_running, latency, budget)
        self._masks = MaskMaker()
        self._totals = EngineTotals()
        self._meter = LoadMeter()
        self._next_deadline = math.inf  # no request's is before it
        self._unnotified: dict[
            int, Request
        ] = {}  # whose callers do not know yet that they are over
        self._over: set[int] = set()  # which the drafter has to let go

    @property
    def idle(self) -> bool:
        return not self.scheduler.running and not self.scheduler.waiting

    def add(self, request: Request) -> None:
        """Queue a request, which joins the next step. Ignore a finished one."""
        if request.done:
            return
        if request.scheduling.latency_target is not None and request.scheduling.may_cut_groups:
            self._cut_groups(request, request.scheduling.latency_target)
        if request.timing.deadline is not None:
            self._next_deadline = min(self._next_deadline, request.timing.deadline)
        self._unnotified[request.id] = request
        self.scheduler.add(request)

    def stats(self) -> EngineStats:
        """Return counters. Any thread may call it, without a lock: the counters may come from different steps."""
        return self._totals.snapshot(self.scheduler, self.kv)

    def load(self) -> EngineLoad:
        """Return the present load and speed. Any thread may call it; it is much cheaper than `stats`."""
        return self._meter.snapshot(self.scheduler, self.kv)

    def step(self) -> None:
        """Run one forward for every request that runs: prompt chunks, last tokens and draft nodes."""
        if time.monotonic() >= self._next_deadline:
            self._end_late()
        work = self._masks.runnable(self.scheduler.next())
        if not work:
            return
        ready = [item.request for item in work if item.ready]
        sizes = draft_sizes(work, ready, self.scheduler, self._masks.slow)
        began = time.perf_counter()
        trees = self._propose(work, ready, sizes)
        drafted = time.perf_counter()
        wanted = self._wanted(work)
        layout = lay_rows(work, trees, self.kv, wanted)
        with self._masks.beside(layout.ready, trees) as late:
            layers = with_probed(layout.ready, self.drafter.features)
            out = self.model.forward(layout.rows, self.kv.storage, layers)
        layout, _ = left_out(late, layout, AcceptResult())
        verified = time.perf_counter()
        layout, result = self._accept(layout, out)
        verdicts = list(result.accepted_nodes)  # whole, also where the answer ends inside a run
        confidences = cut_where_unsure(layout, result, out.logits)
        cut_where_over(layout, result, out)
        note_logprobs(layout, result, out.logits)
        trace_step(layout, verdicts, result, (drafted - began, verified - drafted))
        pure = layout.pure
        self._commit(layout, verdicts, result)
        out.seen = see_prompts(layout, out.seen, layers, self.drafter.features)
        if (shown := read_features(out, layout)) is not None:
            self.drafter.read([request for request, _ in work], wanted, shown)
        self.drafter.commit(layout.ready, result, committed_features(out, layout, result))
        made = sum(map(len, result.tokens))
        self._note_times(layout, made, pure, (began, drafted, verified))
        self._escalate(layout.ready, result, confidences)
        self._notify(layout.ready)

    def end(self, requests: Sequence[Request], reason: Reason, error: BaseException | None) -> None:
        """End requests outside of a step. Whatever raises meanwhile, all pages are freed and all callers notified;
        then the error is raised."""
        with ExitStack() as every:  # it calls what was added last first
            every.callback(self._wake, requests)
            every.callback(self._release, requests)
            for request in requests:
                every.callback(self._remove, request)
                every.callback(request.end, reason, error)

    def fail(self, error: Exception) -> int:
        """End the requests of a failed step; return their number."""
        untouched = [r for r in self.scheduler.waiting if r.id not in self.kv.requests]
        skipped = set(untouched)
        failed = [r for r in self._live() if r not in skipped] or untouched[:1]
        self.end(failed, "error", error)
        return len(failed)

    def end_all(self, reason: Reason, error: BaseException | None) -> None:
        """End all requests."""
        self.end(self._live(), reason, error)

    def _live(self) -> list[Request]:
        """Return all requests whose callers do not know that they are over. A successor comes before the request that
        it replaces."""
        return list(reversed(self._unnotified.values()))

    def _end_late(self) -> None:
        now, alive = time.monotonic(), [*self.scheduler.running, *self.scheduler.waiting]
        timed = [(r.timing.deadline, r) for r in alive if r.timing.deadline is not None]
        self._next_deadline = min((end for end, _ in timed if end > now), default=math.inf)
        self.end([request for end, request in timed if end <= now], "timeout", None)

    def forget_prompts(self) -> None:
        """Empty the prefix cache, and what drafters remember. What runs or waits now is not shared later either."""
        for request in (*self.scheduler.running, *self.scheduler.waiting):
            request.sharing.allowed = False
            for successor in request.successors:
                successor.sharing.allowed = False
        self.kv.clear_prefix()
        self.drafter.forget()

    def _cut_groups(self, request: Request, target: float) -> None:
        """Lower a request's groups or experts until it meets its latency target. Lossy."""
        units = RoutedUnits.of(self.model.config)
        own = units.most if request.groups is None else request.groups
        rows = len(self.scheduler.running) + 1
        for groups in dict.fromkeys(max(n, units.least) for n in (own, own // 2, own // 4, 0)):
            asked = request.groups if groups == own else groups
            if self.cost_model.seconds(asked, rows) <= SHARE * target:
                break
        if asked != request.groups:
            request.groups = asked
            request.log.notes.append(
                f"{asked} of {own} {units.name} to keep {1000 * target:g} ms (lossy)"
            )

    def _propose(
        self, work: Sequence[ScheduledChunk], ready: Sequence[Request], sizes: Sequence[int]
    ) -> list[Tree]:
        """Draft for every request that gets tokens, and cut the drafts to what pays over the whole batch."""
        nodes = [0 if request.known.ahead else size for request, size in zip(ready, sizes)]
        trees = self.drafter.propose(ready, nodes)
        if check_trees(trees, nodes, self.model.config.vocab_size):
            rows = sum(chunk + r.rows_after(r.computed + chunk) for r, chunk in work)
            trees = cut_drafts(ready, trees, nodes, rows, self.cost_model)
        each = zip(ready, trees, sizes)
        return [r.known.draft(size) if r.known.ahead else tree for r, tree, size in each]

    def _wanted(self, work: Sequence[ScheduledChunk]) -> list[range]:
        """Return the positions of text, without last tokens, whose features the drafter wants of this step."""
        rows = [range(r.computed, r.computed + chunk - (chunk == r.pending)) for r, chunk in work]
        return self.drafter.wants([r for r, _ in work], rows) if any(rows) else rows

    def _accept(self, layout: StepLayout, out: ModelOutput) -> tuple[StepLayout, AcceptResult]:
        """Decide which tokens every request gets. Requests that take none yet are left out."""
        ready = layout.ready
        waiting = ask_probes(layout, out)
        result = accept(
            layout.trees,
            target_probs(layout, out),
            lambda b, depth: stream(ready[b].seed, len(ready[b].tokens) + depth, Purpose.ACCEPT),
            [request.judge for request in ready],
        )
        keep_answered(ready, result)
        keep_ahead(waiting, ready, result)
        late = {*waiting, *self._masks.unfollowed(ready, layout.trees, result)}
        return left_out(late, layout, result)

    def _commit(
        self, layout: StepLayout, verdicts: Sequence[list[int]], result: AcceptResult
    ) -> None:
        now = time.monotonic()
        for request, chunk in layout.work:
            if chunk < request.pending:
                request.computed += chunk
                self.kv.advance(request.id, request.computed, request.tokens)
        for b, (request, tree) in enumerate(zip(layout.ready, layout.trees, strict=True)):
            nodes, tokens = result.accepted_nodes[b], result.tokens[b]
            base = len(request.tokens)
            made = request.next_answered is None
            request.log.sources += token_sources(request, tree, verdicts[b], tokens)
            request.tokens.extend(tokens)
            request.computed = base + len(nodes)
            self.kv.commit(request.id, base, nodes, request.tokens)
            if request.known.unread and not request.done:
                request.read_answered(request.known.unread)
            if request.known.passed(tokens):
                tree, nodes = Tree(), []  # no drafter's
            if request.error is None:
                request.record(tree, nodes)
            if made:
                request.spec_stats.add(request.drafter, tree, nodes)
            request.timing.first_token = request.timing.first_token or now
            request.timing.last_token = now

    def _note_times(
        self, layout: StepLayout, made: int, pure: bool, times: tuple[float, float, float]
    ) -> None:
        """Record the duration and tokens of a step. times: at its start, after drafting, after the forward."""
        (began, drafted, verified), ready = times, layout.ready
        rows, now = len(layout.rows.tokens), time.perf_counter()
        if ready:
            timing = StepTiming(rows, now - drafted, drafted - began, made, pure)
            self.cost_model.note(ready, timing)
        self._meter.note(layout.work, ready, rows, now - began)
        for request in ready:
            request.spec_stats.draft_seconds += drafted - began
            request.spec_stats.verify_seconds += verified - drafted

    def _escalate(
        self, ready: Sequence[Request], result: AcceptResult, confidences: Sequence[Sequence[float]]
    ) -> None:
        """Move requests whose confidence fell to the mode that they escalate to."""
        for request, tokens, logprobs in zip(ready, result.tokens, confidences, strict=True):
            state, confidence = request.escalation, request.watched
            if state is None or confidence is None:
                continue
            confidence.take(logprobs[: len(tokens)], last=request.done)
            if (target := state.target) is None or not confidence.fell:
                continue
            request.log.notes.append(target.note(confidence))
            if target.successor is not None:
                # from now on its caller waits for the successor, whatever becomes of this step
                self._unnotified[target.successor.id] = target.successor
                request.stopper.finish("escalated")
                continue
            request.thinking = target.thinking
            if target.keep:
                state.kept = KVHistory(request.groups, request.computed)
                request.groups = target.groups
            elif target.groups != request.groups:
                self.scheduler.restart(request, target.groups)

    def _notify(self, ready: Sequence[Request]) -> None:
        done = [r for r in ready if r.done]
        self._totals.steps += 1
        for request in done:
            self.scheduler.remove(request)
            self._totals.add(request)
        if done:
            self._release(done)
        self._wake(ready)
        for request in done:
            if request.escalated:
                for successor in request.successors:
                    if not successor.done:
                        self.scheduler.add_first(successor)

    def _remove(self, request: Request) -> None:
        if self.scheduler.remove(request):
            self._totals.add(request)

    def _release(self, requests: Sequence[Request]) -> None:
        """Release requests in the drafter. If that raises, the next call releases them again."""
        self._over.update(r.id for r in requests)
        try:
            self.drafter.release(list(self._over))
            self._over.clear()
        except Exception:  # noqa: BLE001 - their answers are whole
            logger.exception("a drafter failed to let go of requests that are over")

    def _wake(self, requests: Sequence[Request]) -> None:
        """Notify all listeners. A listener that raises ends its request, and is notified of that end."""
        for request in requests:
            try:
                request.notify()
            except BaseException as error:  # noqa: BLE001 - the callers of the others wait, too
                logger.exception("a listener failed; its request ends with this error")
                if request.done:
                    request.error = request.error or error
                    with suppress(BaseException):
                        request.notify()
                else:
                    self.end([request], "error", error)
            if request.done:
                self._unnotified.pop(request.id, None)
