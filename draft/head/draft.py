"""The drafter with a head: it drafts chains, or trees of the likeliest nodes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from fastslow.draft.head.growing import CHAINS, GrowingDraft, Growth
from fastslow.draft.head.runner import HeadRunner
from fastslow.draft.head.state import FinishedTexts, HeadState
from fastslow.draft.head.tree import NO_MASS, HeadChain
from fastslow.engine.backends.cpu.draft_head import NewRows, TreeLimits, as_floats
from fastslow.engine.types import AcceptResult, Features, Floats, RequestView, Tree

MAX_WAITING = 256  # rows of a text without drafts; then the runner takes them in any case
MAX_FINISHED_ROWS = 16384
NO_ROWS: Floats = np.empty(0, dtype=np.float32)


class HeadDraft(GrowingDraft[HeadState]):
    """Drafts from the target's own hidden states (EAGLE: arXiv 2401.15077, 2406.16858, 2503.01840).

    A request's first draft comes after its first step, when there are features. A head that was
    trained on prompts gets their features as the target reads them, or reuses the rows of a text with
    the same beginning, as the target's prefix cache does. Rows without features are missing in the
    head's context, which costs acceptance and nothing else.
    """

    def __init__(self, runner: HeadRunner, growth: Growth = CHAINS) -> None:
        super().__init__(growth)
        self.features = runner.config.layers
        self._runner = runner
        self._prompt_rows = runner.config.prompt
        self._states: dict[int, HeadState] = {}
        self._finished = FinishedTexts(MAX_FINISHED_ROWS)
        # of all tokens; used again, since filling V numbers takes as long as a small product
        self._logits = np.full(runner.vocab_size, NO_MASS, dtype=np.float32)
        self._logits_V = torch.from_numpy(self._logits)

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: Features | None
    ) -> None:
        if features is None:
            return
        features = as_floats(features)
        end = 0
        for request, accepted, tokens in zip(batch, result.accepted_nodes, result.tokens):
            own = features[end : end + len(accepted) + 1]
            end += len(own)
            if not tokens:
                continue
            first = len(request.tokens) - len(tokens) - 1  # the row that was last before this step
            state = self._state_at(request, first)
            if len(state.after) >= MAX_WAITING:
                self._flush(state)
            state.features.append(own)
            state.after += tokens
            state.can_draft = True

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        found = []
        for request, some in zip(batch, rows, strict=True):
            first = max(some.start, len(request.tokens) - 1 - self._prompt_rows)
            found.append(range(self._first_missing(request, first), some.stop))
        return found

    def read(self, batch: Sequence[RequestView], rows: Sequence[range], features: Features) -> None:
        if not self._prompt_rows:
            return
        states, sizes, after, parts = list[HeadState](), list[int](), list[int](), list[Floats]()
        end = 0
        for request, some in zip(batch, rows, strict=True):
            end += len(some)
            first = self._first_missing(request, some.start)
            if first >= some.stop:
                continue
            state = self._state_at(request, first)
            self._flush(state)
            states.append(state)
            sizes.append(some.stop - first)
            parts.append(as_floats(features[end - sizes[-1] : end]))
            after += request.tokens[first + 1 : some.stop + 1]
        if states:
            rows_read = NewRows(
                [state.text for state in states], sizes, after, np.concatenate(parts)
            )
            self._runner.read(rows_read)
        for state, size in zip(states, sizes):
            state.position += size
            state.can_draft = False

    def release(self, requests: Collection[int]) -> None:
        for request in requests:
            state = self._states.pop(request, None)
            if state is None:
                continue
            kept = self._prompt_rows and state.shared
            for dropped in self._finished.add(state) if kept else [state]:
                self._runner.close(dropped.text)

    def forget(self) -> None:
        for state in self._states.values():
            state.shared = False
        for dropped in self._finished:
            self._runner.close(dropped.text)
        self._finished.clear()

    def _known(self, request: RequestView, nodes: int) -> HeadState | None:
        """Its state where there is a row to draft from, the one of the last token but one."""
        state = self._states.get(request.id)
        ready = state is not None and state.can_draft and state.end == len(request.tokens) - 1
        return state if ready else None

    def _grow(self, states: Sequence[HeadState], limits: TreeLimits) -> list[Tree]:
        made = self._runner.grow(self._waiting(states), limits)
        for state in states:
            state.flushed()
        return made

    def _first_missing(self, request: RequestView, first: int) -> int:
        state = self._states.get(request.id)
        return first if state is None else max(first, state.end)

    def _state_at(self, request: RequestView, first: int) -> HeadState:
        """The request's state, with `first` as its next row."""
        state = self._states.get(request.id)
        if state is not None and state.end > first:  # rows of an older text
            self._runner.close(self._states.pop(request.id).text)
            state = None
        if state is None:
            state = self._states[request.id] = self._open(request, first)
            self._runner.add_tokens(state.text, request.tokens)
        if state.end < first:  # rows without features
            self._flush(state)
            self._runner.skip(state.text, first)
            state.position = state.first = first
        return state

    def _open(self, request: RequestView, first: int) -> HeadState:
        """A new state; its first rows are those of a text with the same beginning, if there is one."""
        tokens, oldest = request.tokens, max(0, len(request.tokens) - 1 - self._prompt_rows)
        key, shared = request.memory_key, request.shared
        if first > oldest:  # something is missing
            every = [*self._states.values(), *self._finished]
            known = [state for state in every if state.shared and state.key == key]
            best = max(known, key=lambda state: state.shared_rows(tokens, first), default=None)
            end = 0 if best is None else best.shared_rows(tokens, first)
            if best is not None and end > oldest:
                text = self._runner.fork(best.text, best.position - end)
                return HeadState(text, end, tokens, best.first, key=key, shared=shared)
        return HeadState(self._runner.open(first), first, tokens, first, key=key, shared=shared)

    def _flush(self, state: HeadState) -> None:
        if state.after:
            self._runner.read(self._waiting([state]))
            state.flushed()

    def _append(self, chain: HeadChain[HeadState]) -> None:
        logits = self._runner.logits(chain.state.text)
        ids = self._runner.vocab_ids(chain.state.text)
        self._logits[ids] = logits
        chain.extend(self._logits_V, logits)
        self._logits[ids] = NO_MASS

    def _advance(self, states: Sequence[HeadState], tokens: Sequence[int]) -> None:
        self._runner.advance([state.text for state in states], tokens)

    def _waiting(self, states: Sequence[HeadState]) -> NewRows:
        """The rows that the runner does not have yet; their tokens can be drafted from now on."""
        for state in states:
            self._runner.add_tokens(state.text, state.after)
        parts = [part for state in states for part in state.features]
        features = np.concatenate(parts) if len(parts) > 1 else parts[0] if parts else NO_ROWS
        return NewRows(
            [state.text for state in states],
            [len(state.after) for state in states],
            [token for state in states for token in state.after],
            features,
        )
