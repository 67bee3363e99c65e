"""Sampled trees drafted under `coins`, and the exact distribution of what a rule makes of them."""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
from coins import Outcomes, Stream, World
from distributions import text_probs

from fastslow.engine.sampling.accept.accept import accept
from fastslow.engine.sampling.accept.exact import Rule
from fastslow.engine.sampling.rng import Purpose, draw
from fastslow.engine.types import Floats, Tree

V = 3
Text = tuple[int, ...]
NextProbs = Callable[[Text], Floats]
Make = Callable[[NextProbs, Stream], Tree]


def table(seed: int, sharpness: float = 1.5, vocab: int = V, holes: bool = False) -> NextProbs:
    """Probabilities after every text; with holes, one token has probability 0, as after top-k."""

    @cache
    def law_of(text: Text) -> Floats:
        random = np.random.default_rng([seed, len(text), *text])
        p_V = np.exp(sharpness * random.normal(size=vocab))
        if holes:
            p_V[random.integers(vocab)] = 0.0
        law_V: Floats = (p_V / p_V.sum()).astype(np.float32)
        return law_V

    return law_of


class Growing:
    """A sampled tree while it is drafted."""

    def __init__(self, q: NextProbs, draws: Stream) -> None:
        self._q, self._draws = q, draws
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._q_probs: list[Floats] = []
        self._texts: list[Text] = [()]

    def add(self, parent: int, without: Text = ()) -> int:
        """Sample a child of `parent` from q, or from what is left of q without these tokens."""
        q_V = self._q(self._texts[parent + 1]).copy()
        q_V[list(without)] = 0.0
        q_V /= q_V.sum()
        x = draw(q_V, self._draws)  # type: ignore[arg-type]
        self._tokens.append(x)
        self._parents.append(parent)
        self._q_probs.append(q_V)
        self._texts.append((*self._texts[parent + 1], x))
        return len(self._tokens) - 1

    def token(self, node: int) -> int:
        return self._tokens[node]

    def tree(self) -> Tree:
        return Tree(self._tokens, self._parents, np.stack(self._q_probs))


def chain(q: NextProbs, draws: Stream) -> Tree:
    growing = Growing(q, draws)
    node = -1
    for _ in range(3):
        node = growing.add(node)
    return growing.tree()


def repeats(q: NextProbs, draws: Stream) -> Tree:
    """Siblings sampled from the same q, perhaps the same token twice; the first one goes on."""
    growing = Growing(q, draws)
    growing.add(growing.add(-1))
    growing.add(-1)
    return growing.tree()


def apart(q: NextProbs, draws: Stream) -> Tree:
    """Siblings without replacement; both go on, and what is drawn first need not come first."""
    growing = Growing(q, draws)
    first = growing.add(-1)
    growing.add(growing.add(-1, without=(growing.token(first),)))
    growing.add(first)
    return growing.tree()


def shaped_by_what_was_drawn(q: NextProbs, draws: Stream) -> Tree:
    """The draft goes on only after some tokens, as one does that stops when it is unsure."""
    growing = Growing(q, draws)
    node = growing.add(-1)
    while growing.token(node) != 1 and len(growing.tree().tokens) < 3:
        node = growing.add(node)
    return growing.tree()


def chosen(q: NextProbs, draws: Stream) -> Tree:
    """The two best everywhere, one of them twice."""
    tokens: list[int] = []
    parents: list[int] = []
    texts: list[tuple[int, Text]] = [(-1, ())]
    for parent, text in texts:
        if len(text) == 2:
            break
        best, next_best = (int(x) for x in np.argsort(-q(text), kind="stable")[:2])
        for x in (next_best, best, next_best):
            tokens.append(x)
            parents.append(parent)
            texts.append((len(tokens) - 1, (*text, x)))
    return Tree(tokens, parents)


def target_probs_of(tree: Tree, target: NextProbs, done: Text = ()) -> list[Floats]:
    runs: list[Text] = [done]
    for token, parent in zip(tree.tokens, tree.parents):
        runs.append((*runs[parent + 1], token))
    return [target(run) for run in runs]


def one_step(rule: Rule, make: Make, q: NextProbs, target: NextProbs) -> Callable[[World], Text]:
    def step(world: World) -> Text:
        tree = make(q, world.stream(0, Purpose.DRAFT))
        result = accept(
            [tree],
            [target_probs_of(tree, target)],
            lambda b, depth: world.stream(depth, Purpose.ACCEPT),  # type: ignore[arg-type,return-value]
            [rule],
        )
        assert [tree.tokens[i] for i in result.accepted_nodes[0]] == result.tokens[0][:-1]
        return tuple(result.tokens[0])

    return step


def joint_probs(outcomes: Outcomes[Text], target: NextProbs, length: int) -> np.ndarray:
    """Probabilities of the first `length` tokens; plain decoding goes on after the accepted ones."""
    joint = np.zeros((V,) * length)
    for text, probability in outcomes:
        if len(text) >= length:
            joint[text[:length]] += probability
        else:
            joint[text] += probability * text_probs(partial(_after, target, text), V, length - len(text))
    return joint


def _after(target: NextProbs, text: Text, more: Text) -> Floats:
    return target((*text, *more))


def mean_accepted(rule: Rule, make: Make, q: NextProbs, target: NextProbs) -> float:
    return sum((len(text) - 1) * p for text, p in Outcomes(one_step(rule, make, q, target)))
