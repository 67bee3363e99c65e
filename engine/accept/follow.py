"""Follow the target: draw its own next token, and go on while the tree has it."""

from __future__ import annotations

from fastslow.engine.accept.rule import Laws, Place
from fastslow.engine.noise import draw
from fastslow.engine.types import Certain, Floats, Tree


def follow(tree: Tree, laws: Laws, place: Place) -> tuple[list[int], int]:
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


def token_at(law: Floats | Certain, place: Place, depth: int) -> int:
    """The target's own token after `depth` accepted ones."""
    return law.token if isinstance(law, Certain) else draw(law, place(depth))
