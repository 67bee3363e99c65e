"""Token by token: keep a drafted token with its chance, or follow the target's own choice."""

from __future__ import annotations

from fastslow.engine.sampling.accept.rule import Place, TargetProbsAt, pick, residual, weight
from fastslow.engine.sampling.rng import draw
from fastslow.engine.types import Floats, OneHot, Tree


def tokenwise(tree: Tree, laws: TargetProbsAt, place: Place) -> tuple[list[int], int]:
    """Walk from the root. Node x, sampled from q, is kept with probability min(1, p(x)/q(x)); if it
    is not, p becomes the residual max(p - q, 0) for its siblings, and for the last token where none
    is kept.

    Exact; Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318; for trees,
    Miao et al. 2023, arXiv 2305.09781. A chosen tree is followed.
    """
    if tree.probs is None:
        return follow_target(tree, laws, place)
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


def follow_target(tree: Tree, laws: TargetProbsAt, place: Place) -> tuple[list[int], int]:
    """Draw the target's token at each place; a child that is this token is accepted.

    The token at a place is a function of the law there and of the first uniform number of its
    address, with a draft or without: a seed gives the same *tokens* for every drafter and budget
    as in plain decoding, provided that the rows of logits are the same bits. One uniform number
    and the inverse distribution function do this in one pass over V; Gumbel noise would want V
    numbers a place. Distribution functions are summed in float64, where steps of float32
    probabilities stay apart.

    For *chosen* nodes this is also the best that an exact rule can do: no rule keeps a run of
    tokens more often than the target says it. For *sampled* nodes it keeps a node with probability
    sum(p * q) and not sum(min(p, q)), which is the price of being reproducible. A drafter
    lowers it that draws its nodes from its own laws by these very numbers, `draw(q_V, stream(seed,
    place, Purpose.ACCEPT))`, and hands them on as chosen: the tokens stay what they are.

    Greedy decoding is the case of certain laws: nothing is drawn, nothing has V numbers.
    """
    path: list[int] = []
    here, token = -1, token_at(laws[0], place, 0)
    for i, (x, parent) in enumerate(zip(tree.tokens, tree.parents)):  # children follow parents
        if parent == here and x == token:
            path.append(i)
            here, token = i, token_at(laws[i + 1], place, len(path))
    return path, token


def token_at(law: Floats | OneHot, place: Place, depth: int) -> int:
    """The target's own token after `depth` accepted ones."""
    return law.token if isinstance(law, OneHot) else draw(law, place(depth))
