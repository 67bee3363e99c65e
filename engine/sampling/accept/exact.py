"""The exact rules of acceptance: token by token, by block, and the target's own choice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from fastslow.engine.sampling.rng import draw
from fastslow.engine.types import Floats, OneHot, Probs, Tree

TargetProbsAt = Sequence[Probs]
"""Of a tree of n nodes, n+1 entries: after the last committed token, then after each node."""

RngAt = Callable[[int], np.random.Generator]
"""Accepted tokens so far -> the uniform stream of that place in the request's text."""

Accepted = tuple[list[int], int]
"""Accepted nodes, root to leaf, and one more token, from the target."""

Rule = Callable[[Tree, TargetProbsAt, RngAt], Accepted]
"""(tree, target probabilities, where draws come from) -> what is accepted.

A rule is exact if these tokens, and later tokens drawn from the target, have the joint probability
that the target gives them, whatever was drafted. For *sampled* trees that asks of the drafter:

- `tree.probs[i]` are the probabilities of node i given the text, its ancestors, and its earlier
  siblings with all nodes below them. The shape of the tree may depend on those nodes, never on the
  node's own token.
- The draws of a step are new ones. A rule that looks at a whole branch before it decides (`block`)
  has learned something of every token of it, so the number that a rejected token was drawn by must
  not come back in the next step's draft. A stream addressed by the *first* place that the step
  drafts is new in every step; streams addressed by every token's own place are not.
"""


def weight(probs: Probs, token: int) -> float:
    """The probability of a token."""
    if isinstance(probs, OneHot):
        return float(token == probs.token)
    return float(probs[token])


def residual(probs: Probs, mass: float, q_V: Floats) -> tuple[Probs, float]:
    """Return the rest of `mass * probs` after q_V, by which the rejected node was sampled: max(mass * probs - q,
    0) divided by its sum, and that sum. Where the sum is 0 the first is of no use."""
    if isinstance(probs, OneHot):
        return probs, max(mass - float(q_V[probs.token]), 0.0)
    left_V = probs - q_V if mass == 1.0 else probs * np.float32(mass) - q_V
    np.maximum(left_V, 0.0, out=left_V)
    rest = float(left_V.sum(dtype=np.float64))
    if rest > 0.0:
        left_V /= np.float32(rest)
    return left_V, rest


def pick(probs: Probs, draws: np.random.Generator) -> int:
    """Draw one token."""
    return probs.token if isinstance(probs, OneHot) else draw(probs, draws)


def tokenwise(tree: Tree, target_probs: TargetProbsAt, place: RngAt) -> Accepted:
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
            else:  # p <= q everywhere, which can only be a rounding: the rejection was one, too
                kept = weight(probs, x) > 0.0
        if kept:
            path.append(i)
            node, probs, draws = i, target_probs[i + 1], place(len(path))
    return path, pick(probs, draws)


def follow_target(
    tree: Tree, target_probs: TargetProbsAt, place: RngAt, kept: Sequence[int] = ()
) -> Accepted:
    """Draw the target's token at every place; a child that is this token is accepted. kept: nodes that are accepted
    in any case, from the root on.

    The token at a place depends on the target's probabilities there and on one uniform number of
    that place's own stream, with a draft or without. So a seed gives the same *tokens* for every
    drafter and budget as in plain decoding, provided that the logits are the same bits.

    For *chosen* nodes no exact rule can do better: none keeps a run of tokens more often than the
    target says it. For *sampled* nodes it keeps a node with probability sum(p * q) and not
    sum(min(p, q)), which is the price of being reproducible. A drafter lowers that price where it
    draws its nodes by these very numbers, `draw(q_V, stream(seed, place, Purpose.ACCEPT))`, and
    hands them on as chosen.

    At temperature 0 the probabilities are one-hot, and nothing is drawn.
    """
    path = list(kept)
    node = path[-1] if path else -1
    token = token_at(target_probs[node + 1], place, len(path))
    for i, (x, parent) in enumerate(zip(tree.tokens, tree.parents)):  # parents before children
        if parent == node and x == token:
            path.append(i)
            node, token = i, token_at(target_probs[i + 1], place, len(path))
    return path, token


def token_at(probs: Probs, place: RngAt, depth: int) -> int:
    """The target's own token after `depth` accepted ones."""
    return probs.token if isinstance(probs, OneHot) else draw(probs, place(depth))


def block(tree: Tree, target_probs: TargetProbsAt, place: RngAt) -> Accepted:
    """Accept the deepest node that the target can pay for, looking at leaves first.

    On chains this is block verification (Sun et al. 2025, arXiv 2403.10444), which keeps at least
    as many tokens on average as the token-by-token rule; on trees, traversal verification (Weng et
    al. 2025, arXiv 2505.12398). A node's token may be too likely in the draft and a later one too
    unlikely; over the branch they cancel. A chosen tree goes by `follow_target`.

    Why it is exact. A node owes *mass* m: it and all nodes below it must be accepted with probability
    m in all, followed by a token with the target's probabilities p. The root owes 1. Let a child x be
    sampled from q, and owe min(1, m p(x)/q(x)): over all x it emits min(q, m p). So max(m p - q, 0) is
    still owed, of mass s. The walk comes so far only where the child and all nodes below it were
    rejected: with probability 1 - m + s. The node now owes mass s / (1 - m + s), with the probabilities
    max(m p - q, 0) / s, to its other children in the same way, and in the end itself: it is accepted
    with the mass it owes, and the last token is drawn from what p has become.
    """
    if tree.probs is None:
        return follow_target(tree, target_probs, place)
    q, draws = tree.probs, place(0)  # all draws come from the stream of the step's first place
    children: dict[int, list[int]] = defaultdict(list)
    for i, parent in enumerate(tree.parents):
        children[parent].append(i)

    def emit(node: int, mass: float) -> Accepted | None:
        """Accepted nodes below this one and the last token, with probability `mass`; else None."""
        probs = target_probs[node + 1]
        for i in children.get(node, ()):
            if not mass > 0.0:
                return None
            x, q_V = tree.tokens[i], q[i]
            owed, drafted = mass * weight(probs, x), float(q_V[x])
            below = emit(i, min(1.0, owed / drafted) if owed > 0.0 else 0.0)
            if below is not None:
                return [i, *below[0]], below[1]
            left, rest = residual(probs, mass, q_V)
            came = 1.0 - mass + rest
            if came > 0.0:
                probs, mass = left, rest / came
            elif owed > 0.0:  # the rejection was a rounding, as in the token-by-token rule
                return [i], pick(target_probs[i + 1], draws)
        if mass < 1.0 and not draws.random() < mass:
            return None
        return [], pick(probs, draws)

    found = emit(-1, 1.0)
    assert found is not None, "the root owes mass 1 to the end"
    return found
