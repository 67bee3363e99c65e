"""Every constant of the speculation controller, each with its why. None can change a token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpeculationTuning:
    """What the controller assumes, and how fast it learns.

    Found on a CPU with the prompt sets of `benchmarks/replay.py`. Units: nodes are draft nodes, rows
    are rows of a step, a "row's price" is what a row adds to a step, in tokens of one request, at
    the speed of a step without drafts. A pair of waits is the first one and the longest.
    """

    # When rows are dear, as in large batches. One price, two limits.
    dear_row: float = 0.15
    """Price above which drafts must prove themselves in the A/B gate: predictions are off by about
    as much as drafts can gain there."""
    dearest_row: float = 0.4
    """Price above which the gate begins without drafts, and only the first, cheapest of several
    drafters is asked: more drafts speed up a few requests and slow down every step."""
    priced_nodes: int = 3
    """Nodes of each request over which a row is priced: the very first ones are often free."""

    # Planner
    most_nodes: int = 24
    """Most nodes of a request in a step: longer drafts hardly ever survive."""
    margin: float = 1.02
    """What a draft must promise over none: estimates err, and plain decoding is certain."""
    free_node: float = 0.03
    """Drafting a node in less than this share of a plain step is as good as free: all is asked for,
    and cut afterwards, when scores are known."""
    least_budget: int = 4
    """Nodes that such a drafter is asked for at least; above, twice what ran last time, since nodes
    that will be cut take time, too."""
    ask_wait: tuple[int, int] = (8, 8)
    """Steps until a drafter that brings less than asking takes is asked all the same: the text may
    have changed, and one question costs little."""
    probe_wait: tuple[int, int] = (16, 256)
    """Steps without a node until one is run whatever is known of it: no estimate stays wrong."""

    # Acceptance model
    prior_chance: float = 0.7
    """Chance of a node whose drafter gives no score, before anything was seen."""
    prior_nodes: float = 4.0
    """The prior, or the drafter's own score, counts as so many nodes that were judged."""
    node_memory: float = 256.0
    """Nodes of a kind that are remembered: texts change slowly."""
    deepest: int = 8
    """Deeper nodes are too rare for an estimate of their own, and share this depth's."""
    score_bins: int = 5
    """Scores are told apart this finely: fine enough to correct them, coarse enough to fill."""
    prior_yield: tuple[float, float] = (0.4, 0.5)
    """Nodes accepted and run each time a drafter is asked, until more is known."""
    yield_memory: float = 200.0
    """Questions that are remembered of all requests, from which a new request begins."""
    own_yield_memory: float = 24.0
    """Questions that a request remembers of its own: few, as it may turn to something else."""
    bias_rate: float = 0.25
    """How far one judged node moves a request's log-odds: a few nodes must be enough."""
    bias_limit: float = 3.0
    """Furthest shift, in log-odds: beyond, it would take too long to come back."""
    bias_decay: float = 0.99
    """What is left of the shift after a step."""

    # Costs of steps and of drafting
    table_rows: int = 1024
    """Rows for which seconds are tabulated; beyond, a step takes as much more as its rows."""
    step_rate: float = 0.2
    """Weight of the newest step, over the measured curve."""
    step_limit: float = 2.0
    """A step over or under what it took lately counts as no more than this ratio."""
    step_fresh: int = 128
    """Steps for which what was seen of a number of rows holds; then its neighbours speak for it."""
    table_every: int = 8
    """Steps between new tables: one takes some 50 us."""
    held_up: float = 4.0
    """A time that is so many times the usual was held up by something else, and counts as this."""
    draft_memory: float = 10.0
    """Proposals over which a drafter's times are averaged: they follow the text's length."""

    # A/B gate: steps with drafts against steps without
    phase: int = 8
    """Steps that go one way before the other may: shorter phases are mostly noise."""
    gate_rate: float = 0.3
    """Weight of the newest trial where drafts usually run."""
    gate_rate_off: float = 0.6
    """The same where they do not: trials are rare there, and texts have changed since the last."""
    gate_loss: float = -0.01
    """Log gain below which drafting stops: a smaller loss cannot be measured."""
    gate_trials: int = 2
    """Trials before it may stop: one says nothing."""
    gate_wait: tuple[int, int] = (2, 48)
    """Phases between trials where drafts run."""
    gate_wait_unlikely: int = 4
    """Phases before the first trial where rows are dearest."""
    gate_wait_off: float = 12.0
    """Longest wait where no drafts run: what new texts would bring is not seen then."""
    gate_growth: float = 1.5
    """Growth of the wait from trial to trial where both ways are equally fast."""
    gate_plain: float = 8.0
    """How much more the wait grows by each unit of log gain: where it is plain to see, trials cost
    more than they tell."""
    usual_memory: float = 3.0
    """Steps over which a step's usual time is averaged, to see which one was held up."""

    # Selection among several drafters
    prior_gain: float = 1.0
    """Tokens that a drafter is thought to bring before it has spoken: everyone is tried."""
    own_gain_memory: float = 10.0
    """Proposals that are remembered of a request's own."""
    gain_memory: float = 50.0
    """Proposals that are remembered of all requests, from which a new request begins."""
    gain_begun: float = 3.0
    """Own proposals as which those of others count for a new request."""
    most_trust: float = 1.5
    """Most that a drafter's scores are scaled up by, where they promise too little."""
    ask_memory: float = 50.0
    """Questions over which the time of asking is averaged."""
    ask_overhead: float = 1.5
    """What drafts take in all over the time of asking: features, a larger step's own work."""
    select_wait: tuple[int, int] = (8, 128)
    """Steps in which a drafter that pays for nobody is not tried."""
    waking: int = 4
    """Steps before it is tried in which its features are gathered, so that it has something to see."""


TUNING = SpeculationTuning()
