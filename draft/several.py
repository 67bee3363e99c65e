"""Drafters that combine others. All of them find the layers that they read in one tensor."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import torch

from fastslow.draft.merge import merge_trees
from fastslow.engine.model.base import layer_columns
from fastslow.engine.types import AcceptResult, Drafter, Features, RequestView, Tree

T = TypeVar("T")


def on_each(parts: Iterable[T], act: Callable[[T], None]) -> None:
    """Act on every part, also after an error; the first error is raised at the end."""
    errors: list[Exception] = []
    for part in parts:
        try:
            act(part)
        except Exception as error:  # noqa: BLE001 - the others must not be left out
            errors.append(error)
    if errors:
        raise errors[0]


def counted(trees: list[Tree], requests: int) -> list[Tree]:
    """Return what a drafter proposed; ValueError if it is not a tree for each request."""
    if not isinstance(trees, list | tuple) or not all(isinstance(tree, Tree) for tree in trees):
        raise ValueError(f"the drafter proposed {trees!r:.60}, and a list of Tree is needed")
    if len(trees) != requests:
        raise ValueError(f"the drafter proposed {len(trees)} trees for {requests} requests")
    return trees


def union(drafters: Iterable[Drafter]) -> tuple[int, ...]:
    """The layers that any of them reads, ascending."""
    return tuple(sorted({layer for drafter in drafters for layer in drafter.features}))


def columns(
    features: Features | None, layers: tuple[int, ...], wanted: tuple[int, ...]
) -> Features | None:
    """The `wanted` layers' columns out of features [C, F] of `layers`; None where none is wanted, or
    one is not there."""
    if features is None or not wanted or not set(wanted) <= set(layers):
        return None
    return layer_columns(features, layers, wanted)


class SeveralDrafters:
    """Base of drafters that combine others: forwards commit, read and so on to each, for its requests."""

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self.drafters = drafters
        self.features = union(drafters)

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: Features | None
    ) -> None:
        counts = [len(path) + 1 for path in result.accepted_nodes]
        for drafter, members in self._parts(batch):
            own = columns(features, self.features, drafter.features)
            if len(members) == len(batch):  # the usual case: nothing is copied
                drafter.commit(batch, result, own)
                continue
            part = AcceptResult(
                [result.accepted_nodes[b] for b in members], [result.tokens[b] for b in members]
            )
            drafter.commit([batch[b] for b in members], part, _rows_of(own, counts, members))

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        found, asking = [range(0)] * len(batch), list[Drafter]()
        for drafter, members in self._readers(batch):
            some = drafter.wants([batch[b] for b in members], [rows[b] for b in members])
            for b, own in zip(members, some, strict=True):
                found[b] = _around(found[b], own)
            if any(some):
                asking.append(drafter)
        self.features = tuple(sorted({*self.features, *union(asking)}))
        return found

    def read(self, batch: Sequence[RequestView], rows: Sequence[range], features: Features) -> None:
        counts = [len(some) for some in rows]
        for drafter, members in self._parts(batch):
            own = columns(features, self.features, drafter.features)
            kept, some = _rows_of(own, counts, members), [rows[b] for b in members]
            if kept is not None and any(some):
                drafter.read([batch[b] for b in members], some, kept)

    def forget(self) -> None:
        on_each(self.drafters, lambda drafter: drafter.forget())

    def release(self, requests: Collection[int]) -> None:
        on_each(self.drafters, lambda drafter: drafter.release(requests))

    def _parts(self, batch: Sequence[RequestView]) -> list[tuple[Drafter, Sequence[int]]]:
        """The drafters, each with the places of its requests in the batch."""
        return [(drafter, range(len(batch))) for drafter in self.drafters]

    def _readers(self, batch: Sequence[RequestView]) -> list[tuple[Drafter, Sequence[int]]]:
        """Drafters that read the prompts, each with the places of its requests in the batch."""
        return self._parts(batch)


class FallbackDrafter(SeveralDrafters):
    """Asks drafters in turn; the first non-empty draft of a request is used. `names` are theirs, for their
    trees' `drafter_names`."""

    def __init__(self, *drafters: Drafter, names: Sequence[str] = ()) -> None:
        super().__init__(drafters)
        self._names = names

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        trees = [Tree()] * len(batch)
        for number, drafter in enumerate(self.drafters):
            left = [0 if tree.tokens else n for tree, n in zip(trees, nodes)]
            own = counted(drafter.propose(batch, left), len(batch))
            if self._names:
                name = self._names[number]
                own = [replace(tree, drafter_names=[name] * len(tree.tokens)) for tree in own]
            trees = [tree if tree.tokens else own[b] for b, tree in enumerate(trees)]
        return trees


class DrafterSelection(Protocol):
    """Decides which of several numbered drafters are asked for which requests."""

    def collect(
        self,
        batch: Sequence[RequestView],
        nodes: Sequence[int],
        ask: Callable[[int, Sequence[int]], tuple[Sequence[Tree], float]],
    ) -> list[list[tuple[int, Tree]]]:
        """For each request, the proposals to draft, with the numbers of their drafters. `ask`: (drafter,
        most nodes of each request) -> its trees, and the seconds they took."""

    def awake(self, drafter: int) -> bool:
        """Tell whether a drafter may be asked in one of the next steps, and so needs its features."""

    def able(self, batch: Sequence[RequestView]) -> int:
        """The number of drafters, counted from the first, that may be asked in steps of these requests."""

    def judge(self, batch: Sequence[RequestView], result: AcceptResult) -> None:
        """Learn from what was accepted."""

    def release(self, requests: Collection[int]) -> None: ...


class AdaptiveDrafter(SeveralDrafters):
    """`AdaptiveDrafter([a, b], selection)`: b is asked, too, where it would bring more than a promises; what both
    propose is merged into one tree. The selection decides, and learns from the result.

    drafters: in the order in which they are asked, the cheapest first. now: seconds, as of `time.perf_counter`.
    names: of the drafters, for their trees' `drafter_names`. features: the layers that the drafters read which may be
    asked now or soon.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        selection: DrafterSelection,
        now: Callable[[], float] = time.perf_counter,
        names: Sequence[str] = (),
    ) -> None:
        super().__init__(drafters)
        self.selection = selection
        self._now = now
        self._names = names

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        def ask(drafter: int, most: Sequence[int]) -> tuple[list[Tree], float]:
            started = self._now()
            trees = counted(self.drafters[drafter].propose(batch, most), len(batch))
            return trees, self._now() - started

        if not any(nodes):  # nobody is asked; that they rest is the caller's to say
            for drafter in self.drafters:
                drafter.propose(batch, nodes)
            return [Tree()] * len(batch)
        proposals = self.selection.collect(batch, nodes, ask)
        self.features = union(d for i, d in enumerate(self.drafters) if self.selection.awake(i))
        return [
            merge_trees(own, most, self._names) if own else Tree()
            for own, most in zip(proposals, nodes)
        ]

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: Features | None
    ) -> None:
        super().commit(batch, result, features)
        self.selection.judge(batch, result)

    def release(self, requests: Collection[int]) -> None:
        parts = [*(drafter.release for drafter in self.drafters), self.selection.release]
        on_each(parts, lambda release: release(requests))

    def _readers(self, batch: Sequence[RequestView]) -> list[tuple[Drafter, Sequence[int]]]:
        """A prompt is shown once: drafters that are not asked now read it, too, unless such batches never ask them."""
        return self._parts(batch)[: self.selection.able(batch)]


def _rows_of(
    features: Features | None, counts: Sequence[int], members: Sequence[int]
) -> Features | None:
    """Features of some requests. counts: rows of each request in `features`."""
    if features is None or len(members) == len(counts):
        return features
    rows = torch.split(torch.as_tensor(features), list(counts))
    return torch.cat([rows[b] for b in members])


def _around(a: range, b: range) -> range:
    """The shortest run that holds both."""
    if not a or not b:
        return a or b
    return range(min(a.start, b.start), max(a.stop, b.stop))
