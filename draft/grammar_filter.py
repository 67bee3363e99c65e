"""Drafts under a grammar: cut where it forbids a token, and longer by tokens that are certain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastslow.engine.token_mask import CERTAIN
from fastslow.engine.types import FORCED, RequestView, Tree


def certain_chain(request: RequestView, most: int) -> Tree:
    """The next tokens that a thinking budget or a grammar leaves no choice of, at most `most`."""
    thinking, grammar = request.thinking, request.grammar
    if thinking is not None and (grammar is None or not grammar.begun(request.tokens)):
        ahead = thinking.ahead(request.tokens)[:most]
        if ahead:
            return _forced(ahead)
    if grammar is None:
        return Tree()
    tokens = grammar.ahead(request.tokens, (), most)
    return replace(_forced(tokens), drafter_ids=[CERTAIN] * len(tokens)) if tokens else Tree()


def _forced(tokens: Sequence[int]) -> Tree:
    """A chain of tokens that are accepted in any case."""
    if not tokens:
        return Tree()
    return replace(
        Tree.chain(tokens, scores=[1.0] * len(tokens)), drafter_names=[FORCED] * len(tokens)
    )


def filter_by_grammar(tree: Tree, request: RequestView, most: int) -> Tree:
    """The draft without what cannot be accepted, and with what must follow its leaves. A sampled node that
    does not fit stays, since what is left of the target's probabilities depends on its rejection; but
    nothing stays below it."""
    grammar = request.grammar
    if grammar is None:
        return tree
    if not tree.tokens:
        return certain_chain(request, most)
    runs: dict[int, list[int]] = {-1: []}  # tokens up to every node that fits
    kept: list[int] = []
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents)):
        if parent not in runs or grammar.walks_slowly:
            continue
        run = [*runs[parent], token]
        fits = grammar.fits(request.tokens, run)
        if fits:
            runs[node] = run
        if fits or tree.probs is not None:
            kept.append(node)
    if not kept:
        return certain_chain(request, most)
    leaves = [node for node in kept if node in runs and node not in {tree.parents[i] for i in kept}]
    grown = tree.only(kept)
    place = {node: i for i, node in enumerate(kept)}
    for leaf in leaves:
        more = grammar.ahead(request.tokens, runs[leaf], most - len(grown.tokens))
        if more:
            grown = _longer(grown, place[leaf], more, request.drafter)
    return grown


def _longer(tree: Tree, leaf: int, tokens: Sequence[int], drafter: str) -> Tree:
    """The tree, of a drafter with this name, with certain tokens after a leaf."""
    first, count = len(tree.tokens), len(tokens)
    probs, scores = tree.probs, tree.scores
    if probs is not None:
        probs = np.concatenate([probs, np.eye(probs.shape[1], dtype=probs.dtype)[list(tokens)]])
    if scores is not None:
        scores = [*scores, *[scores[leaf]] * count]
    return Tree(
        [*tree.tokens, *tokens],
        [*tree.parents, leaf, *range(first, first + count - 1)],
        probs,
        scores,
        [*(tree.drafter_ids or [0] * first), *[CERTAIN] * count],
        [*(tree.drafter_names or [drafter] * first), *[FORCED] * count],
    )
