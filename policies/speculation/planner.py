"""The length of drafts: a budget before a step, and the choice of the drafted nodes that it runs."""

from __future__ import annotations

from collections.abc import Sequence

from fastslow.engine.types import RequestView, Tree
from fastslow.policies.speculation.acceptance import AcceptanceModel, DraftYield, RequestBias
from fastslow.policies.speculation.backoff import Backoff
from fastslow.policies.speculation.loss_budget import LossBudgets, RequestLossBudget
from fastslow.policies.speculation.step_cost import StepCostCurve, StepCosts
from fastslow.policies.speculation.tuning import TUNING, SpeculationTuning


def nodes_that_pay(
    survival: Sequence[Sequence[float] | None],
    sizes: Sequence[int],
    rows: int,
    curve: StepCostCurve,
) -> list[list[int]]:
    """The nodes of each request's tree to run, ascending: the likeliest nodes (parents before children), as many as
    give the step the most expected tokens per second; none if plain decoding gives more.

    survival: for each request, the chance of every node to be accepted with all before it; None: all its nodes run.
    sizes: nodes of each request's tree. rows: the step's other rows.
    """
    kept: list[list[int]] = [
        list(range(size)) if chances is None else []
        for chances, size in zip(survival, sizes, strict=True)
    ]
    rows += sum(map(len, kept))
    offered = [
        (-chance, b, node)
        for b, chances in enumerate(survival)
        if chances is not None
        for node, chance in enumerate(chances)
    ]
    offered.sort()
    tokens = float(len(survival))
    best, most = 0, tokens / curve.seconds(rows)
    for count, (chance, _, _) in enumerate(offered, 1):
        tokens -= chance
        rate = tokens / curve.seconds(rows + count)
        if rate > most:
            best, most = count, rate
    for _, b, node in sorted(offered[:best], key=lambda item: item[1:]):
        kept[b].append(node)
    return kept


def best_length(
    chances: Sequence[float],
    running: int,
    node_seconds: float,
    curve: StepCostCurve,
) -> int:
    """Find the fastest draft length where drafting itself takes time. chances: survival of a chain's nodes, first to
    last. running: requests that run; the others are taken to be alike. node_seconds: seconds that one more node of
    depth takes to draft, for all of them."""
    tokens = 1.0
    best, most = 0, tokens / curve.seconds(running)
    for length, chance in enumerate(chances, 1):
        tokens += chance
        rate = tokens / (curve.seconds(running * (1 + length)) + length * node_seconds)
        if rate > most:
            best, most = length, rate
    return best


class FixedLength:
    """The same draft budget of `nodes` at every step; 0 = plain decoding."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes

    def plan(self, request: RequestView, running: int) -> int:
        return self._nodes

    def survival(self, tree: Tree) -> None:
        """All nodes run."""

    def record(self, tree: Tree, accepted: Sequence[int]) -> None:
        """Nothing is learnt."""


class AdaptiveLength:
    """As far as drafting pays, by earlier acceptance and step costs; perhaps not at all.

    Before a step it plans a budget: a large one where drafting is nearly free, else the length with
    most expected tokens per second. The draft is then cut over the whole batch, by `survival`. Both
    depend on earlier steps only, never on sampled tokens of this step.
    """

    def __init__(
        self,
        drafter: object,
        acceptance: AcceptanceModel,
        costs: StepCosts,
        budgets: LossBudgets,
        tuning: SpeculationTuning = TUNING,
    ) -> None:
        self._drafter = drafter
        self._acceptance = acceptance
        self._costs = costs
        self._budgets = budgets
        self._loss: RequestLossBudget | None = None
        self._tuning = tuning
        self._bias = RequestBias(acceptance)
        known = acceptance.brought
        self._brought = DraftYield(
            known.accepted.value, known.ran.value, tuning.own_yield_memory, tuning.yield_begun
        )
        self._asking = Backoff(*tuning.ask_wait, wait=tuning.ask_wait[0])
        self._probe = Backoff(*tuning.probe_wait, wait=tuning.probe_wait[0])
        self._asked = self._probing = False  # in this step
        self._ran = 0  # nodes that ran lately

    def plan(self, request: RequestView, running: int) -> int:
        running = max(running, 1)
        self._asked = self._probing = False
        if self._loss is None:
            self._loss = self._budgets.open(running, request.memory_key)
        if self._loss.paused:
            return 0
        tuning, curve, key = self._tuning, self._costs.curve(request.groups), request.memory_key
        self._probing = self._probe.due
        step = curve.seconds(running)
        # one more token saves a request's share of a step
        gain = self._brought.gain(curve.row_price(running, 1)) * step / running
        self._asked = gain > self._costs.ask_seconds(self._drafter, key) or self._asking.due
        if not self._asked:
            self._asking.skip()
            return 0
        if self._asking.wait == 0:
            self._asking.skip()  # asked twice: a drafter that rested has nothing to say at first
        else:
            self._asking.again(1)
        node = self._costs.node_seconds(self._drafter, key)
        if node is not None and node >= tuning.free_node * step:
            sure = self._bias.surest(tuning.most_nodes)
            return best_length(sure, running, node, curve) or int(self._probing)
        return min(tuning.most_nodes, tuning.least_budget + 2 * self._ran)

    def survival(self, tree: Tree) -> list[float]:
        chances = self._bias.survival(tree)
        if self._probing and chances:
            chances[0] = 1.0  # run it in any case, to learn from it
        return chances

    def record(self, tree: Tree, accepted: Sequence[int]) -> None:
        ran, loss = len(tree.tokens), self._loss
        if loss is not None:
            loss.asked, loss.nodes, loss.accepted = self._asked, ran, len(accepted)
            self._budgets.take(loss)
            if loss.paused:
                return
        if self._asked:
            self._brought.add(len(accepted), ran)
            self._acceptance.brought.add(len(accepted), ran)
        self._ran = ran or max(self._ran - 1, 0)
        if not ran:
            self._probe.skip()
            return
        self._bias.learn(tree, accepted)
        if accepted:
            self._probe.restart(self._probe.first)
        else:
            self._probe.again(2 if self._probing else 1)
