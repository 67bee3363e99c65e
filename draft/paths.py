"""In which order the nodes of a tree are laid out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def likeliest_first(
    parents: Sequence[int], scores: Sequence[float], nodes: Iterable[int]
) -> list[int]:
    """The likeliest path first, then what branches off its end: rows of a path that is accepted then
    mostly stand where they should.

    Args:
        parents: of all nodes; -1 is none.
        scores: of all nodes; a parent's is never below its child's.
        nodes: those to be laid out, and every one's parent.
    """
    children: dict[int, list[int]] = {-1: []}
    order = sorted(nodes, key=lambda node: (-scores[node], node))
    children.update((node, []) for node in order)
    for node in reversed(order):  # so that the likeliest is taken first
        children[parents[node]].append(node)
    laid: list[int] = []
    ahead = children[-1]
    while ahead:
        laid.append(ahead.pop())
        ahead += children[laid[-1]]
    return laid
