"""Every rule's law by exact sums over all drafts and all draws, jointly over several tokens."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from coins import Outcomes, Stream, World
from laws import sampled_text_law

from fastslow.engine.accept import RULES, Rule, accept
from fastslow.engine.noise import Purpose, draw
from fastslow.engine.types import Certain, Draft, Floats, Tree

V = 3
ROUNDING = 2e-6  # laws are float32
Text = tuple[int, ...]
Law = Callable[[Text], Floats]
Make = Callable[[Law, Stream], Tree]
EXACT = {name: rule for name, rule in RULES.items() if "lossy" not in name}
SAMPLED_RULES = {name: EXACT[name] for name in ("token", "block")}


def table(seed: int, sharpness: float = 1.5, vocab: int = V, holes: bool = False) -> Law:
    """A law for every text; with holes, one token of it has probability 0, as after top-k."""

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

    def __init__(self, q: Law, draws: Stream) -> None:
        self._q, self._draws = q, draws
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._laws: list[Floats] = []
        self._texts: list[Text] = [()]

    def add(self, parent: int, without: Text = ()) -> int:
        """Sample a node of parent's law, or of what is left of it without these tokens."""
        q_V = self._q(self._texts[parent + 1]).copy()
        q_V[list(without)] = 0.0
        q_V /= q_V.sum()
        x = draw(q_V, self._draws)  # type: ignore[arg-type]
        self._tokens.append(x)
        self._parents.append(parent)
        self._laws.append(q_V)
        self._texts.append((*self._texts[parent + 1], x))
        return len(self._tokens) - 1

    def token(self, node: int) -> int:
        return self._tokens[node]

    def tree(self) -> Tree:
        return Tree(self._tokens, self._parents, np.stack(self._laws))


def chain(q: Law, draws: Stream) -> Tree:
    growing = Growing(q, draws)
    node = -1
    for _ in range(3):
        node = growing.add(node)
    return growing.tree()


def repeats(q: Law, draws: Stream) -> Tree:
    """Siblings of one law, perhaps the same token twice; the first one goes on."""
    growing = Growing(q, draws)
    first = growing.add(-1)
    growing.add(first)
    growing.add(-1)
    return growing.tree()


def apart(q: Law, draws: Stream) -> Tree:
    """Siblings without replacement; both go on, and what is drawn first need not come first."""
    growing = Growing(q, draws)
    first = growing.add(-1)
    second = growing.add(-1, without=(growing.token(first),))
    growing.add(second)
    growing.add(first)
    return growing.tree()


def shaped_by_what_was_drawn(q: Law, draws: Stream) -> Tree:
    """The draft goes on only after some tokens, as one does that stops when it is unsure."""
    growing = Growing(q, draws)
    node = growing.add(-1)
    while growing.token(node) != 1 and len(growing.tree().tokens) < 3:
        node = growing.add(node)
    return growing.tree()


def chosen(q: Law, draws: Stream) -> Tree:
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


def laws_of(tree: Tree, target: Law, done: Text = ()) -> list[Floats]:
    paths: list[Text] = [done]
    for token, parent in zip(tree.tokens, tree.parents):
        paths.append((*paths[parent + 1], token))
    return [target(path) for path in paths]


def one_step(rule: Rule, make: Make, q: Law, target: Law) -> Callable[[World], Text]:
    def step(world: World) -> Text:
        tree = make(q, world.stream(0, Purpose.DRAFT))
        verdict = accept(
            Draft.of([tree]),
            laws_of(tree, target),
            lambda b, depth: world.stream(depth, Purpose.ACCEPT),  # type: ignore[arg-type,return-value]
            [rule],
        )
        assert [tree.tokens[i] for i in verdict.paths[0]] == verdict.tokens[0][:-1]
        return tuple(verdict.tokens[0])

    return step


def joint_law(outcomes: Outcomes[Text], target: Law, length: int) -> np.ndarray:
    """The law of the first `length` tokens, where plain decoding goes on after the verdict."""
    law = np.zeros((V,) * length)
    for text, probability in outcomes:
        if len(text) >= length:
            law[text[:length]] += probability
        else:
            rest = sampled_text_law(
                lambda more, text=text: target((*text, *more)), V, length - len(text)
            )
            law[text] += probability * rest
    return law


def mean_accepted(rule: Rule, make: Make, q: Law, target: Law) -> float:
    return sum((len(text) - 1) * p for text, p in Outcomes(one_step(rule, make, q, target)))


@pytest.mark.parametrize("holes", [False, True], ids=["full", "holes"])
@pytest.mark.parametrize("make", [chain, repeats, apart, shaped_by_what_was_drawn, chosen])
@pytest.mark.parametrize("rule", EXACT.values(), ids=EXACT)
def test_the_joint_law_of_a_step(rule: Rule, make: Make, holes: bool) -> None:
    target, q = table(1, holes=holes), table(2, 1.0, holes=holes)
    law = joint_law(Outcomes(one_step(rule, make, q, target)), target, 4)
    assert law.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(law, sampled_text_law(target, V, 4), atol=ROUNDING)


def test_the_enumeration_notices_a_wrong_rule() -> None:
    def believes(tree: Tree, laws: object, place: object) -> tuple[list[int], int]:
        path, _ = RULES["token"](tree, laws, place)  # type: ignore[arg-type]
        return path, int(np.argmax(laws[path[-1] + 1 if path else 0]))  # type: ignore[index]

    target = table(1)
    law = joint_law(Outcomes(one_step(believes, chain, table(2, 1.0), target)), target, 4)
    assert np.abs(law - sampled_text_law(target, V, 4)).max() > 1e-2


@pytest.mark.parametrize("rule", EXACT.values(), ids=EXACT)
def test_certain_laws_among_others(rule: Rule) -> None:
    """As where a grammar leaves one token: no law is made of it, and nothing is drawn from it."""
    open_target, q = table(1), table(2, 1.0)

    def certain(text: Text) -> int | None:
        return 2 if len(text) == 1 and text[0] != 1 else None

    def step(world: World) -> Text:
        tree = apart(q, world.stream(0, Purpose.DRAFT))
        laws: list[Floats | Certain] = list(laws_of(tree, open_target))
        for i, parent in enumerate(tree.parents):
            if parent == -1 and certain((tree.tokens[i],)) is not None:
                laws[i + 1] = Certain(2)
        noise = lambda b, depth: world.stream(depth, Purpose.ACCEPT)
        return tuple(accept(Draft.of([tree]), laws, noise, [rule]).tokens[0])  # type: ignore[arg-type]

    def target(text: Text) -> Floats:
        token = certain(text)
        return open_target(text) if token is None else np.eye(V, dtype=np.float32)[token]

    law = joint_law(Outcomes(step), target, 3)
    np.testing.assert_allclose(law, sampled_text_law(target, V, 3), atol=ROUNDING)


def test_the_papers_example() -> None:
    """Two tokens, no context: 10/9 accepted token by token, 11/9 by block (2403.10444, section 2)."""
    target = lambda text: np.array([1 / 3, 2 / 3, 0], dtype=np.float32)
    q = lambda text: np.array([2 / 3, 1 / 3, 0], dtype=np.float32)

    def pair(q: Law, draws: Stream) -> Tree:
        growing = Growing(q, draws)
        growing.add(growing.add(-1))
        return growing.tree()

    assert mean_accepted(RULES["token"], pair, q, target) == pytest.approx(10 / 9, abs=1e-6)
    assert mean_accepted(RULES["block"], pair, q, target) == pytest.approx(11 / 9, abs=1e-6)


def test_block_on_a_chain_is_the_papers_recursion() -> None:
    """p_i = min(p_(i-1) p/q, 1); node i is the last one accepted with h_i = S_i / (S_i + 1 - p_i)."""
    target, q = table(3), table(4, 1.0)
    want: Counter[int] = Counter()
    for text in itertools.product(range(V), repeat=3):
        drafted = np.prod([float(q(text[:i])[x]) for i, x in enumerate(text)])
        paid = [1.0]
        for i, x in enumerate(text):
            paid.append(min(paid[-1] * float(target(text[:i])[x]) / float(q(text[:i])[x]), 1.0))
        refused = 1.0
        for i in (3, 2, 1, 0):
            over = np.maximum(paid[i] * target(text[:i]) - q(text[:i]), 0).sum(dtype=np.float64)
            take = paid[3] if i == 3 else over / (over + 1.0 - paid[i])
            want[i] += drafted * refused * take
            refused *= 1.0 - take
    got: Counter[int] = Counter()
    for text, probability in Outcomes(one_step(RULES["block"], chain, q, target)):
        got[len(text) - 1] += probability
    for i in range(4):
        assert got[i] == pytest.approx(want[i], abs=ROUNDING)


@pytest.mark.parametrize("make", [chain, shaped_by_what_was_drawn])
def test_block_accepts_no_fewer_on_chains(make: Make) -> None:
    gains = []
    for seed in range(12):
        q, target = table(2 * seed, 1.0), table(2 * seed + 1, 0.5 + 0.2 * seed)
        means = {name: mean_accepted(rule, make, q, target) for name, rule in SAMPLED_RULES.items()}
        gains.append(means["block"] - means["token"])
    assert min(gains) > -ROUNDING
    assert max(gains) > 0.02


def test_chosen_drafts_are_kept_as_often_as_the_target_says_them() -> None:
    """No exact rule can keep more, so that all of them are one on chosen trees."""
    target, q = table(5), table(6)
    tree = chosen(q, None)  # type: ignore[arg-type]
    paths: list[Text] = [()]
    for token, parent in zip(tree.tokens, tree.parents):
        paths.append((*paths[parent + 1], token))
    want = sum(
        float(np.prod([target(path[:i])[x] for i, x in enumerate(path)]))
        for path in set(paths)
        if path
    )
    for rule in EXACT.values():
        assert mean_accepted(rule, chosen, q, target) == pytest.approx(want, abs=ROUNDING)


def steps(rule: Rule, by_place: bool) -> Callable[[World], Text]:
    """Chains of two until three tokens are there; `by_place`: a token's own address when drafted."""
    target, q = table(7), table(8, 1.0)

    def run(world: World) -> Text:
        done: Text = ()
        while len(done) < 3:
            start, text, laws = len(done), done, []
            draws = world.stream(start, Purpose.DRAFT)
            for _ in range(2):
                if by_place:
                    draws = world.stream(len(text), Purpose.DRAFT)
                laws.append(q(text))
                text = (*text, draw(laws[-1], draws))  # type: ignore[arg-type]
            tree = Tree.chain(text[start:], np.stack(laws))
            noise = lambda b, d, start=start: world.stream(start + d, Purpose.ACCEPT)
            found = accept(Draft.of([tree]), laws_of(tree, target, done), noise, [rule])  # type: ignore[arg-type]
            done = (*done, *found.tokens[0])
        return done

    return run


@pytest.mark.parametrize("rule", SAMPLED_RULES.values(), ids=SAMPLED_RULES)
def test_the_joint_law_of_several_steps(rule: Rule) -> None:
    target = table(7)
    law = joint_law(Outcomes(steps(rule, by_place=False)), target, 3)
    np.testing.assert_allclose(law, sampled_text_law(target, V, 3), atol=ROUNDING)


def test_block_wants_drafts_that_are_new_in_each_step() -> None:
    """Addressed by each token's own place, a refused token's number comes back: that is lossy."""
    target = table(7)
    want = sampled_text_law(target, V, 3)
    law = joint_law(Outcomes(steps(RULES["token"], by_place=True)), target, 3)
    np.testing.assert_allclose(law, want, atol=ROUNDING)
    law = joint_law(Outcomes(steps(RULES["block"], by_place=True)), target, 3)
    assert np.abs(law - want).max() > 1e-3
