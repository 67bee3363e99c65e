"""Acceptance: which drafted tokens the target keeps, and the one token it adds.

Walk the tree from the root. A *sampled* node x, drawn from q, is kept with probability
min(1, p(x)/q(x)); if it is not, p becomes the residual max(p - q, 0). A *chosen* node is kept with
probability p(x); if not, p(x) becomes 0. When no child is kept, one token is drawn from what is
left of p. Whatever the drafter proposes, the tokens follow p exactly (Leviathan et al. 2023,
arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318; for trees, Miao et al. 2023, arXiv 2305.09781).
Greedy decoding is the same walk with a one-hot p: the child that is the certain token is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from fastslow.engine.noise import draw
from fastslow.engine.types import Certain, Draft, Floats, Tree, Verdict

Noise = Callable[[int, int], np.random.Generator]
"""(request in the batch, accepted tokens so far) -> the uniform stream of that place."""


def accept(draft: Draft, target: Sequence[Floats | Certain], noise: Noise) -> Verdict:
    """Verify every request's tree.

    Args:
        draft: the proposed forest.
        target: N+B laws, f32 [V] or the one token that is certain; request b owns those from
            starts[b]+b on: the first is the law after its last committed token, then one law after
            each of its nodes.
        noise: where the uniform draws come from, where there is something to draw.

    Returns:
        Accepted nodes of each request, root to leaf, and their tokens with one more from the target.
    """
    verdict = Verdict()
    for b in range(len(draft.starts) - 1):
        tree = draft.tree(b)
        first = int(draft.starts[b]) + b
        path, last = _walk(tree, target[first : first + 1 + len(tree.tokens)], b, noise)
        verdict.paths.append(path)
        verdict.tokens.append([int(tree.tokens[i]) for i in path] + [last])
    return verdict


def _walk(
    tree: Tree, laws: Sequence[Floats | Certain], b: int, noise: Noise
) -> tuple[list[int], int]:
    children: dict[int, list[int]] = defaultdict(list)
    for i, parent in enumerate(tree.parents):
        children[parent].append(i)
    path: list[int] = []
    here = -1
    while True:
        law = laws[here + 1]
        if isinstance(law, Certain):
            kept = next((i for i in children[here] if tree.tokens[i] == law.token), None)
            if kept is None:
                return path, law.token
            path.append(kept)
            here = kept
            continue
        draws = noise(b, len(path))
        p_V = law
        kept = None
        for i in children[here]:
            kept, p_V = _judge(tree, i, p_V, draws)
            if kept is not None:
                break
        if kept is None:
            return path, draw(p_V, draws)
        path.append(kept)
        here = kept


def _judge(
    tree: Tree, i: int, p_V: Floats, draws: np.random.Generator
) -> tuple[int | None, Floats]:
    """Keep node i, or give the law that is left once it is refused."""
    x = tree.tokens[i]
    q_V = None if tree.probs is None else tree.probs[i]
    odds = 1.0 if q_V is None else float(q_V[x])
    if draws.random() * odds < p_V[x]:
        return i, p_V
    if q_V is None:
        left_V = p_V.copy()
        left_V[x] = 0.0
    else:
        left_V = np.maximum(p_V - q_V, 0.0)
    mass = left_V.sum(dtype=np.float64)
    if not mass > 0.0:
        # Nothing is left only where p <= q everywhere, up to rounding: the refusal was a rounding.
        return (i if p_V[x] > 0.0 else None), p_V
    return None, (left_V / mass).astype(np.float32)
