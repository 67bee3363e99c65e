"""Which drafted nodes a step runs: those that make tokens fastest, over the whole batch."""

from __future__ import annotations

from collections.abc import Sequence

from fastslow.policies.pace import Pace

MARGIN = 1.02  # what a draft must promise over none: estimates err, and plain decoding is sure


def admit(
    survival: Sequence[Sequence[float] | None], sizes: Sequence[int], rows: int, pace: Pace
) -> list[list[int]]:
    """The nodes of each request's tree to run, ascending.

    Nodes are taken in order of survival, which takes parents before children, as long as the
    expected tokens per second of the step grow; any number of them may be best, and none are if that
    brings less than MARGIN over plain decoding.

    Args:
        survival: for each request, the chance of each node to be accepted with all before it;
            None: its nodes run whatever they bring.
        sizes: nodes of each request's tree.
        rows: the step's other rows.
        pace: seconds of a step by its rows.
    """
    kept: list[list[int]] = [
        list(range(size)) if chances is None else []
        for chances, size in zip(survival, sizes, strict=True)
    ]
    rows += sum(map(len, kept))
    offered = [
        (-chance, b, node)
        for b, chances in enumerate(survival)
        if chances is not None
        for node, chance in enumerate(chances)
    ]
    offered.sort()
    tokens = float(len(survival))
    best, most = 0, MARGIN * tokens / pace.seconds(rows)
    for count, (chance, _, _) in enumerate(offered, 1):
        tokens -= chance
        rate = tokens / pace.seconds(rows + count)
        if rate > most:
            best, most = count, rate
    for _, b, node in sorted(offered[:best], key=lambda item: item[1:]):
        kept[b].append(node)
    return kept


def best_length(chances: Sequence[float], batch: int, each: float, pace: Pace) -> int:
    """How far to draft where drafting itself takes time.

    Args:
        chances: survival of a chain's nodes, first to last.
        batch: requests that run; the others are taken to be alike.
        each: seconds that one more node of depth takes to draft, for all of them.
        pace: seconds of a step by its rows.
    """
    tokens = 1.0
    best, most = 0, MARGIN * tokens / pace.seconds(batch)
    for length, chance in enumerate(chances, 1):
        tokens += chance
        rate = tokens / (pace.seconds(batch * (1 + length)) + length * each)
        if rate > most:
            best, most = length, rate
    return best
