"""Every outcome of a random computation with its probability: no samples, no statistics.

A `Uniform` is a number in [0, 1) of which only the answers to comparisons are known so far. Every
comparison that is still open splits the world in two. So the code under test runs as it is, its
inverse distribution functions included, once for every combination of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class World:
    """A combination of answers: those of a script, then True for whatever else is asked."""

    def __init__(self, script: tuple[bool, ...]) -> None:
        self.answers = list(script)
        self.probability = 1.0
        self._asked = 0
        self._uniforms: dict[Hashable, Uniform] = {}

    def stream(self, *address: Hashable) -> Stream:
        """Like `rng.stream`: the same address gives the same numbers again."""
        return Stream(self, address)

    def uniform(self, address: Hashable) -> Uniform:
        return self._uniforms.setdefault(address, Uniform(self))

    def ask(self, chance: float) -> bool:
        if self._asked == len(self.answers):
            self.answers.append(True)
        answer = self.answers[self._asked]
        self._asked += 1
        self.probability *= chance if answer else 1.0 - chance
        return answer


class Stream:
    """A stand-in for a `numpy.random.Generator`."""

    def __init__(self, world: World, address: Hashable) -> None:
        self._world = world
        self._address = address
        self._read = 0

    def random(self) -> Uniform:
        self._read += 1
        return self._world.uniform((self._address, self._read))


class Uniform:
    """Lies in [low, high), uniformly."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._low, self._high = 0.0, 1.0

    def __lt__(self, limit: float) -> bool:
        limit = float(limit)
        if limit <= self._low or limit >= self._high:
            return limit >= self._high
        less = self._world.ask((limit - self._low) / (self._high - self._low))
        if less:
            self._high = limit
        else:
            self._low = limit
        return less

    def __mul__(self, scale: float) -> Scaled:
        return Scaled(self, float(scale))


class Scaled:
    """A uniform number times a constant."""

    def __init__(self, uniform: Uniform, scale: float) -> None:
        self._uniform = uniform
        self._scale = scale

    def __lt__(self, limit: float | Scaled) -> bool:
        if isinstance(limit, Scaled):
            assert limit is self, "numpy.searchsorted compares its key with itself"
            return False
        if self._scale == 0.0:
            return limit > 0.0
        return self._uniform < float(limit) / self._scale

    def __gt__(self, limit: float) -> bool:
        return not self < limit  # one single number has no probability


class Outcomes(Generic[T]):
    """Iterates over (result, probability) of `experiment`; probabilities add up to one."""

    def __init__(self, experiment: Callable[[World], T]) -> None:
        self._experiment = experiment

    def __iter__(self) -> Iterator[tuple[T, float]]:
        scripts: list[tuple[bool, ...]] = [()]
        while scripts:
            script = scripts.pop()
            world = World(script)
            result = self._experiment(world)
            fresh = world.answers[len(script) :]
            for i in range(len(fresh)):
                scripts.append((*script, *fresh[:i], False))
            yield result, world.probability
