"""Merges the trees of several drafters into one, and orders the nodes of a tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastslow.engine.types import Tree

MAX_DRAFTERS = 8  # whose proposals can be distinguished


def likeliest_first(
    parents: Sequence[int], scores: Sequence[float], nodes: Iterable[int], most: int
) -> list[int]:
    """The likeliest of some nodes, at most `most`, in the order of their rows: the likeliest path, then the
    branches nearest to its end. The rows of an accepted path then mostly need no move. `nodes` hold the
    parent of each; its score is never below its child's."""
    children: dict[int, list[int]] = {-1: []}
    order = sorted(nodes, key=lambda node: (-scores[node], node))[:most]
    children.update((node, []) for node in order)
    for node in reversed(order):  # so that the likeliest is taken first
        children[parents[node]].append(node)
    laid: list[int] = []
    ahead = children[-1]
    while ahead:
        laid.append(ahead.pop())
        ahead += children[laid[-1]]
    return laid


def merge_trees(trees: Sequence[tuple[int, Tree]], nodes: int, names: Sequence[str] = ()) -> Tree:
    """Merge the likeliest nodes of all trees into one tree: where they agree a node is surer, else it branches.

    Where several hold a node, its chance is that not all of them err, if errors are independent; where
    siblings' chances add up to more than one they are scaled down to one. `drafter_ids` encode which
    drafters propose the node and which propose another token there.

    trees: of chosen nodes with scores, each with the number of its drafter, below MAX_DRAFTERS; a single tree is
    returned with its number. nodes: most nodes. names: of the drafters by number; a node has the name of the first
    that holds it.
    """
    if len(trees) == 1:
        number, tree = trees[0]
        size = len(tree.tokens)
        made = [1 << number] * size, [names[number]] * size if names else None
        return Tree(tree.tokens, tree.parents, tree.probs, tree.scores, *made)
    place: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    wrong: list[float] = []  # chance that all who hold it err, given its parent
    holders: list[int] = []
    proposers: dict[int, int] = {}  # node -> drafters with a child of it
    for number, tree in trees:
        assert tree.scores is not None
        mine = {-1: -1}
        for i, (token, parent, score) in enumerate(zip(tree.tokens, tree.parents, tree.scores)):
            key = (mine[parent], token)
            node = mine[i] = place.setdefault(key, len(place))
            if node == len(wrong):
                wrong.append(1.0)
                holders.append(0)
            before = tree.scores[parent] if parent >= 0 else 1.0
            wrong[node] *= 1 - min(1.0, score / before if before > 0 else 0.0)
            holders[node] |= 1 << number
            proposers[key[0]] = proposers.get(key[0], 0) | 1 << number
    keys = list(place)
    total: dict[int, float] = {}
    for (parent, _), error in zip(keys, wrong):
        total[parent] = total.get(parent, 0.0) + 1 - error
    scores: list[float] = []
    for (parent, _), error in zip(keys, wrong):
        before = scores[parent] if parent >= 0 else 1.0
        scores.append(before * (1 - error) / max(1.0, total[parent]))
    parents = [parent for parent, _ in keys]
    kept = likeliest_first(parents, scores, range(len(keys)), nodes)
    at = {-1: -1, **{node: i for i, node in enumerate(kept)}}
    held = [holders[node] for node in kept]
    others = [proposers[parents[node]] & ~own for node, own in zip(kept, held)]
    return Tree(
        [keys[node][1] for node in kept],
        [at[parents[node]] for node in kept],
        scores=[scores[node] for node in kept],
        drafter_ids=[own | other << MAX_DRAFTERS for own, other in zip(held, others)],
        # the lowest number of those encoded
        drafter_names=[names[(h & -h).bit_length() - 1] for h in held] if names else None,
    )
