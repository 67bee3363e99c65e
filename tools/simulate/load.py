"""A trace at another rate: more users or fewer of the same kind, not the same ones in a hurry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from fastslow.tools.simulate.synthetic import MOST_REQUESTS
from fastslow.tools.simulate.trace import TracedRequest

FEWEST = 5_000  # requests, for percentiles that do not jump


def at_rate(
    trace: Sequence[TracedRequest], per_second: float, seconds: float, seed: int = 0
) -> list[TracedRequest]:
    """So many requests a second on average, for some seconds or until there are FEWEST.

    Users come in copies of the trace, each begun at another time of it; of the last copy, or of the only
    one, some conversations are taken. A copy's conversations are its own, and other pieces that prompts
    begin with, such as system prompts, are shared by all copies. The trace goes round: where it ends it
    begins again.

    Args:
        trace: by arrival.
        per_second: requests.
        seconds: of arrivals; at most as long as the trace.
        seed: of the choices.

    Raises:
        ValueError: that would be too many requests, or none, or the trace has no length.
    """
    start, length = trace[0].arrival, trace[-1].arrival - trace[0].arrival
    if length <= 0:
        raise ValueError("a trace whose requests all come at once has no rate to change")
    # one request more comes where the trace begins again
    length *= len(trace) / max(1, len(trace) - 1)
    taken = min(length, max(seconds, FEWEST / per_second))
    copies = per_second * length / len(trace)
    if not per_second * taken <= MOST_REQUESTS:  # nor nan
        raise ValueError(
            f"{per_second:g} requests a second for {taken:.0f} s are more than {MOST_REQUESTS:,}"
        )
    random = Random(seed)
    roots = _roots(trace)
    found: list[TracedRequest] = []
    copy = 0
    while copies > 1e-9:
        kept = None if copies >= 1 else _sample(random, sorted(set(roots.values())), copies)
        begin = random.random() * length if copy else 0.0
        for one in trace:
            arrival = (one.arrival - start - begin) % length
            if arrival < taken and (kept is None or roots[one.id] in kept):
                found.append(_copied(one, arrival, copy, roots))
        copies -= 1
        copy += 1
    if not found:
        raise ValueError(
            f"{per_second:g} requests a second leave none of this trace: take a longer one, or more"
        )
    return sorted(found, key=lambda one: (one.arrival, one.id))


def _roots(trace: Sequence[TracedRequest]) -> dict[str, str]:
    """The first request of the conversation that each belongs to, by id."""
    ids = {one.id for one in trace}
    return {one.id: next((name for name, _ in one.prefix if name in ids), one.id) for one in trace}


def _sample(random: Random, names: Sequence[str], share: float) -> set[str]:
    return {name for name in names if random.random() < share}


def _copied(one: TracedRequest, arrival: float, copy: int, roots: dict[str, str]) -> TracedRequest:
    if not copy:
        return replace(one, arrival=arrival)
    pieces: Iterator[tuple[str, int]] = (
        (f"{name}~{copy}" if name in roots else name, tokens) for name, tokens in one.prefix
    )
    return replace(one, arrival=arrival, id=f"{one.id}~{copy}", prefix=tuple(pieces))
