"""Routers to compare: the server's own, and a model of Ray's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from hashlib import blake2b
from random import Random
from typing import Protocol

from fastslow.engine.params import nearest
from fastslow.serve.engines.routing.report import ReplicaReport
from fastslow.serve.engines.routing.request import MOST_CHARACTERS, RoutedRequest
from fastslow.tools.simulate.trace import TracedRequest

ROUTERS = ("fastslow", "pow2")
CHARACTERS = 4  # of a token, as English has them


class ComparedRouter(Protocol):
    """What `ReplicaChooser` has."""

    def set_replicas(self, ids: Iterable[str]) -> None: ...
    def report(self, id: str, report: ReplicaReport) -> None: ...
    def rank(self, request: RoutedRequest) -> list[str]: ...
    def routed(self, request: RoutedRequest, id: str) -> None: ...
    def ended(self, request_id: str) -> None: ...


class PowerOfTwo:
    """Of two replicas by chance the one that answers fewer requests: a model of Ray's default router, which
    asks both for the length of their queue.

    Args:
        length: requests that a replica has now.
        random: makes the choices.
    """

    def __init__(self, length: Callable[[str], int], random: Random) -> None:
        self._length = length
        self._random = random
        self._ids: list[str] = []

    def set_replicas(self, ids: Iterable[str]) -> None:
        self._ids = list(ids)

    def report(self, id: str, report: ReplicaReport) -> None:
        """It asks replicas itself."""

    def rank(self, request: RoutedRequest) -> list[str]:
        two = self._random.sample(self._ids, min(2, len(self._ids)))
        return sorted(two, key=self._length)

    def routed(self, request: RoutedRequest, id: str) -> None:
        """It remembers nothing."""

    def ended(self, request_id: str) -> None:
        """It remembers nothing."""


def check_router(name: str) -> None:
    """ValueError: there is none of this name."""
    if name not in ROUTERS:
        raise ValueError(f"router={name!r} is unknown{nearest(name, ROUTERS)}")


def prompt_text(request: TracedRequest) -> str:
    """The beginning of a prompt, for routers that compare texts: as long as the prompt's, and alike where its
    pieces are."""
    pieces = [*request.prefix, (request.id, request.prompt_tokens - request.shared_tokens)]
    parts, room = [], MOST_CHARACTERS
    for name, tokens in pieces:
        parts.append(_text(name, min(CHARACTERS * tokens, room)))
        room -= len(parts[-1])
        if room <= 0:
            break
    return "".join(parts)


@lru_cache(10_000)
def _text(name: str, characters: int) -> str:
    """Text that only this name has."""
    word = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
    return (word * (characters // len(word) + 1))[:characters]
