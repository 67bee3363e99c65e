"""Chats that share prefixes find them again, as with one engine."""

from __future__ import annotations

from random import Random

import pytest
from routing_tools import Clock, chooser_of, report

from fastslow.serve.engines.routing.request import RoutedRequest

PAGE = 64  # characters of a page, as 16 tokens


class PageCache:
    """What one engine's prefix cache would hold: pages by all text before them and their mode."""

    def __init__(self) -> None:
        self._pages: set[int] = set()

    def read(self, request: RoutedRequest) -> int:
        """Characters of the prompt that were found; then all of them are there."""
        found, whole = 0, True
        for end in range(PAGE, len(request.prompt) + 1, PAGE):
            page = hash((request.mode, request.memory_key, request.prompt[:end]))
            whole = whole and page in self._pages
            found += PAGE if whole else 0
            self._pages.add(page)
        return found


def chats(seed: int, count: int) -> list[RoutedRequest]:
    """Turns of conversations in turn: three system prompts, two modes; each turn goes on from the last."""
    random = Random(seed)
    systems = ["".join(random.choices("abcdefgh ", k=size)) for size in (600, 1500, 6000)]
    made = []
    talks = [
        (random.choice(systems), random.choice(["fast", "deep"]), number) for number in range(count)
    ]
    texts = {number: system for system, _, number in talks}
    for turn in range(5):
        for _, mode, number in random.sample(talks, len(talks)):
            texts[number] += f"user {number}" + "".join(random.choices("ijklmnop ", k=200))
            prompt = texts[number]
            made.append(
                RoutedRequest(
                    f"{number}.{turn}", mode, mode == "deep", prompt, len(prompt) // 4, 100
                )
            )
            texts[number] += "".join(random.choices("qrstuvwx ", k=400))  # the answer
    return made


@pytest.mark.parametrize("replicas", [2, 3, 10])
@pytest.mark.parametrize("mode", ["fast", "deep"])
def test_nine_tenths_of_what_one_engine_would_find(replicas: int, mode: str) -> None:
    clock = Clock()
    ids = [f"r{n}" for n in range(replicas)]
    chooser = chooser_of(ids, clock)
    one, caches = PageCache(), {id: PageCache() for id in ids}
    best = found = 0
    running: list[tuple[float, str]] = []
    for number, request in enumerate(chats(seed=5, count=60)):
        clock.now += 0.5
        for end, id in [r for r in running if r[0] <= clock.now]:
            running.remove((end, id))
            chooser.ended(id)
        if number % 2:
            for id in ids:
                chooser.report(id, report(clock.now, pages=100_000))
        id = chooser.rank(request)[0]
        chooser.routed(request, id)
        running.append((clock.now + 1.5, request.id))
        hits, ideal = caches[id].read(request), one.read(request)
        if request.mode == mode:
            best, found = best + ideal, found + hits
    assert found >= 0.9 * best
