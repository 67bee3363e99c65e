"""The token-by-token rule."""

from __future__ import annotations

from fastslow.engine.accept.follow import follow
from fastslow.engine.accept.residual import pick, residual, weight
from fastslow.engine.accept.rule import Laws, Place
from fastslow.engine.types import Tree


def tokenwise(tree: Tree, laws: Laws, place: Place) -> tuple[list[int], int]:
    """Walk from the root. Node x, sampled from q, is kept with probability min(1, p(x)/q(x)); if it
    is not, p becomes the residual max(p - q, 0) for its siblings, and for the last token where none
    is kept.

    Exact; Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318; for trees,
    Miao et al. 2023, arXiv 2305.09781. A chosen tree is followed.
    """
    if tree.probs is None:
        return follow(tree, laws, place)
    path: list[int] = []
    here, law, draws = -1, laws[0], place(0)
    for i, (x, parent) in enumerate(zip(tree.tokens, tree.parents)):  # children follow parents
        if parent != here:
            continue
        q_V = tree.probs[i]
        kept = draws.random() * float(q_V[x]) < weight(law, x)
        if not kept:
            left, rest = residual(law, 1.0, q_V)
            if rest > 0.0:
                law = left
            else:  # only where p <= q everywhere, up to rounding: the refusal was a rounding
                kept = weight(law, x) > 0.0
        if kept:
            path.append(i)
            here, law, draws = i, laws[i + 1], place(len(path))
    return path, pick(law, draws)
