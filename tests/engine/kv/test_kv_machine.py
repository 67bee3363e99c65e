"""Any sequence of cache operations keeps the books and every row of every request right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from schedule_tools import small_cache

from fastslow.engine.kv.state.layout import RowState, StateLayout
from fastslow.engine.types import Ints

PAGES, PAGE_SIZE = 12, 4

tokens_ = st.integers(0, 1)
# Texts that often start alike, and whose pages repeat: only what comes before tells them apart.
texts = st.builds(
    lambda alike, tail: [0] * alike + tail,
    st.integers(1, 17),
    st.one_of(st.just([]), st.just([]), st.lists(tokens_, max_size=8)),
)
roots = st.sampled_from([None, ("groups", 2)])
picks = st.integers(0, 99)


def marker(root: object, text: Sequence[int]) -> float:
    """The number that the model would write for the last token of `text`: decided by all of it."""
    return float(crc32(repr((root, list(text))).encode()) % 2**24)


@dataclass
class Held:
    root: object
    tokens: list[int]
    valid: int


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache = small_cache(PAGES)
        self.held: dict[int, Held] = {}
        self.opened = 0

    def pick(self, pick: int) -> int:
        return list(self.held)[pick % len(self.held)]

    def write(self, request: int, position: int, text: Sequence[int]) -> None:
        """Write a row as the model does: k and v of each layer, all different."""
        assert position >= self.held[request].valid
        value = marker(self.held[request].root, text)
        storage = self.cache.storage
        for layer, (k, v) in enumerate(zip(storage.k, storage.v, strict=True)):
            at = self.at(layer, self.cache.slots(request, position, position + 1))
            k[at] = value + layer
            v[at] = -value - layer

    def at(self, layer: int, slots: Ints) -> Ints:
        """Where slots lie in a layer; page 0 of one with a window has zeros."""
        if (where := self.cache.storage.pages_of(layer)) is None:
            return slots
        found = where(slots)
        assert (found >= PAGE_SIZE).all() and not self.cache.storage.k[layer][:PAGE_SIZE].any()
        return found

    def reserve(self, request: int, length: int) -> bool:
        def state() -> tuple[int, int, int]:
            return self.cache.room(request), self.cache.free_pages, self.cache.empty_pages

        room, free, _ = before = state()
        enough = self.cache.pages_for(length) - room // PAGE_SIZE <= free
        assert self.cache.reserve(request, length) == enough
        assert self.cache.room(request) >= length if enough else state() == before
        return enough

    @precondition(lambda self: len(self.held) < 4)
    @rule(tokens=texts, root=roots, most=st.sampled_from([None, -1, 7, 0]))
    def open(self, tokens: list[int], root: object, most: int | None) -> None:
        limit = len(tokens) if most is None else len(tokens) - 1 if most == -1 else most
        valid = self.cache.open(self.opened, tokens, root, limit)
        assert valid % PAGE_SIZE == 0 and valid <= min(limit, len(tokens))
        self.held[self.opened] = Held(root, tokens, valid)
        self.opened += 1

    @precondition(lambda self: self.held)
    @rule(pick=picks, size=st.integers(1, 24))
    def prompt_chunk(self, pick: int, size: int) -> None:
        request = self.pick(pick)
        held = self.held[request]
        length = min(held.valid + size, len(held.tokens))
        if not self.reserve(request, length):
            return
        for position in range(held.valid, length):
            self.write(request, position, held.tokens[: position + 1])
        self.cache.advance(request, length, held.tokens)
        held.valid = length

    @precondition(lambda self: self.held)
    @rule(pick=picks, nodes=st.lists(st.tuples(tokens_, picks), max_size=7), leaf=picks, bonus=tokens_)
    def step(self, pick: int, nodes: list[tuple[int, int]], leaf: int, bonus: int) -> None:
        """Verify a random tree after the last token, and accept the path to a random node."""
        request = self.pick(pick)
        held = self.held[request]
        base = len(held.tokens)
        if not self.reserve(request, base + len(nodes)):
            return
        for position in range(held.valid, base):
            self.write(request, position, held.tokens[: position + 1])
        ways: list[list[int]] = []  # nodes from the root to each node
        for node, (_, above) in enumerate(nodes):
            parent = above % (node + 1) - 1
            ways.append([*(ways[parent] if parent >= 0 else []), node])
            drafted = [nodes[i][0] for i in ways[node]]
            self.write(request, base + node, held.tokens + drafted)
        path = [[], *ways][leaf % (len(nodes) + 1)]
        held.tokens = [*held.tokens, *(nodes[i][0] for i in path), bonus]
        self.cache.commit(request, base, path, held.tokens)
        held.valid = base + len(path)

    @precondition(lambda self: self.held)
    @rule(pick=picks, length=st.sampled_from([0, 5, 20, 99]))
    def reserve_ahead(self, pick: int, length: int) -> None:
        self.reserve(self.pick(pick), length)

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def close(self, pick: int) -> None:
        request = self.pick(pick)
        del self.held[request]
        self.cache.close(request)

    @precondition(lambda self: self.opened > 5)
    @rule()
    def clear_prefix(self) -> None:
        self.cache.clear_prefix()
        assert self.cache.free_pages == self.cache.empty_pages

    @invariant()
    def books_agree(self) -> None:
        self.cache.check_integrity()
        used = {
            int(slot) // PAGE_SIZE
            for request in self.held
            for slot in self.cache.slots(request, 0, self.cache.room(request))
        }
        assert self.cache.free_pages == PAGES - len(used)

    @invariant()
    def rows_read_back(self) -> None:
        """Those that a next row sees."""
        for request, held in self.held.items():
            assert self.cache.valid(request) == held.valid
            slots, storage = self.cache.slots(request, 0, held.valid), self.cache.storage
            markers = [marker(held.root, held.tokens[: i + 1]) for i in range(held.valid)]
            for layer, (k, v) in enumerate(zip(storage.k, storage.v, strict=True)):
                window = storage.layout.rows[layer].window
                first = max(0, held.valid + 1 - window) if window else 0
                at, expected = self.at(layer, slots[first:]), torch.tensor(markers[first:])
                assert torch.equal(k[at, 0, 1], expected + layer)
                assert torch.equal(v[at, 0, 0], -expected - layer)

    def teardown(self) -> None:
        for request in list(self.held):
            self.cache.close(request)
        self.cache.check_integrity()
        assert self.cache.free_pages == PAGES


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(stateful_step_count=50, suppress_health_check=[HealthCheck.too_slow])


class WindowMachine(CacheMachine):
    """Few pages for the layer with a window: room is short there first."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = small_cache(
            12, layout=StateLayout((RowState(1, 2, 2), RowState(1, 2, 2, window=6))), places=1, snapshots=1, ring=6
        )

    def reserve(self, request: int, length: int) -> bool:
        room = self.cache.room(request)
        enough = self.cache.reserve(request, length)
        assert self.cache.room(request) >= length if enough else self.cache.room(request) == room
        return enough


TestWindowMachine = WindowMachine.TestCase
TestWindowMachine.settings = settings(stateful_step_count=50, suppress_health_check=[HealthCheck.too_slow])
