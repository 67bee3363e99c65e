"""Trees of several drafters as one tree."""

from __future__ import annotations

from random import Random

import pytest
from head_tools import node_paths

from fastslow.draft.merge import MAX_DRAFTERS, merge_trees
from fastslow.engine.types import Tree


def nodes_by_path(tree: Tree) -> dict[tuple[int, ...], int]:
    return {path: node for node, path in enumerate(node_paths(tree))}


def grown(random: Random, nodes: int) -> Tree:
    """A tree of few tokens, so that two have much in common."""
    tokens, parents, scores = list[int](), list[int](), list[float]()
    taken: set[tuple[int, int]] = set()
    for _ in range(nodes):
        parent = random.randint(-1, len(tokens) - 1)
        token = random.randint(0, 2)
        if (parent, token) not in taken:
            taken.add((parent, token))
            tokens.append(token)
            parents.append(parent)
            scores.append((scores[parent] if parent >= 0 else 1.0) * random.random())
    return Tree(tokens, parents, scores=scores)


@pytest.mark.parametrize("seed", range(20))
def test_all_nodes_are_held_once_and_no_child_is_likelier_than_its_parent(seed: int) -> None:
    random = Random(seed)
    parts = [(number, grown(random, random.randint(1, 12))) for number in range(3)]
    whole = merge_trees(parts, 100)
    wanted = [nodes_by_path(tree) for _, tree in parts]
    assert nodes_by_path(whole).keys() == set().union(*wanted)
    assert whole.scores is not None and whole.drafter_ids is not None
    for path, node in nodes_by_path(whole).items():
        parent = whole.parents[node]
        assert 0 <= whole.scores[node] <= (whole.scores[parent] if parent >= 0 else 1.0)
        holders, others = (
            whole.drafter_ids[node] % (1 << MAX_DRAFTERS),
            whole.drafter_ids[node] >> MAX_DRAFTERS,
        )
        for number, _ in parts:
            assert bool(holders >> number & 1) == (path in wanted[number])
            beside = any(p[:-1] == path[:-1] for p in wanted[number])
            assert bool(others >> number & 1) == (beside and path not in wanted[number])
    for parent in range(-1, len(whole.tokens)):
        children = [s for s, p in zip(whole.scores, whole.parents) if p == parent]
        assert sum(children) <= (whole.scores[parent] if parent >= 0 else 1.0) + 1e-9
    few = merge_trees(parts, 4)
    assert len(few.tokens) == min(4, len(whole.tokens))
    assert few.scores is not None
    assert sorted(few.scores) == sorted(whole.scores)[-len(few.tokens) :]


def test_where_they_agree_a_node_is_surer() -> None:
    one, two = Tree([5], [-1], scores=[0.5]), Tree([5], [-1], scores=[0.6])
    both = merge_trees([(0, one), (1, two)], 4)
    assert both.scores == pytest.approx([0.8])
    alone = merge_trees([(1, two)], 4)
    assert alone.scores == [0.6] and alone.drafter_ids == [2]


def test_the_likeliest_path_comes_first() -> None:
    one = Tree([1, 2], [-1, 0], scores=[0.3, 0.2])
    two = Tree([7, 8], [-1, 0], scores=[0.6, 0.5])
    assert list(merge_trees([(0, one), (1, two)], 4).tokens) == [7, 8, 1, 2]
