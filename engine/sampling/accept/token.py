"""Acceptance token by token: rejection sampling, or the target's own choice."""

from __future__ import annotations

from fastslow.engine.sampling.accept.rule import (
    Accepted,
    Place,
    TargetProbsAt,
    pick,
    residual,
    weight,
)
from fastslow.engine.sampling.rng import draw
from fastslow.engine.types import OneHot, Probs, Tree


def tokenwise(tree: Tree, target_probs: TargetProbsAt, place: Place) -> Accepted:
    """Walk from the root. Node x, sampled from q, is kept with probability min(1, p(x)/q(x)); if it
    is not, p becomes the residual max(p - q, 0) for its siblings, and for the last token where none
    is kept.

    Exact; Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318; for trees,
    Miao et al. 2023, arXiv 2305.09781. A chosen tree goes by `follow_target`.
    """
    if tree.probs is None:
        return follow_target(tree, target_probs, place)
    path: list[int] = []
    node, probs, draws = -1, target_probs[0], place(0)
    for i, (x, parent) in enumerate(zip(tree.tokens, tree.parents)):  # parents before children
        if parent != node:
            continue
        q_V = tree.probs[i]
        kept = draws.random() * float(q_V[x]) < weight(probs, x)
        if not kept:
            left, rest = residual(probs, 1.0, q_V)
            if rest > 0.0:
                probs = left
            else:  # p <= q everywhere, which can only be a rounding: the refusal was one, too
                kept = weight(probs, x) > 0.0
        if kept:
            path.append(i)
            node, probs, draws = i, target_probs[i + 1], place(len(path))
    return path, pick(probs, draws)


def follow_target(tree: Tree, target_probs: TargetProbsAt, place: Place) -> Accepted:
    """Draw the target's token at every place; a child that is this token is accepted.

    The token at a place depends on the target's probabilities there and on one uniform number of
    that place's own stream, with a draft or without. So a seed gives the same *tokens* for every
    drafter and budget as in plain decoding, provided that the logits are the same bits. One uniform
    number and the inverse distribution function do this in one pass over V (the Gumbel trick would
    need V numbers). The function is summed in float64, where steps of float32 stay apart.

    For *chosen* nodes no exact rule can do better: none keeps a run of tokens more often than the
    target says it. For *sampled* nodes it keeps a node with probability sum(p * q) and not
    sum(min(p, q)), which is the price of being reproducible. A drafter lowers that price where it
    draws its nodes by these very numbers, `draw(q_V, stream(seed, place, Purpose.ACCEPT))`, and
    hands them on as chosen.

    At temperature 0 the probabilities are one-hot, and nothing is drawn.
    """
    path: list[int] = []
    node, token = -1, token_at(target_probs[0], place, 0)
    for i, (x, parent) in enumerate(zip(tree.tokens, tree.parents)):  # parents before children
        if parent == node and x == token:
            path.append(i)
            node, token = i, token_at(target_probs[i + 1], place, len(path))
    return path, token


def token_at(probs: Probs, place: Place, depth: int) -> int:
    """The target's own token after `depth` accepted ones."""
    return probs.token if isinstance(probs, OneHot) else draw(probs, place(depth))
