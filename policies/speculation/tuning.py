"""Every constant of the speculation controller with its reason. None of them can change a token."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpeculationTuning:
    """The controller's assumptions, and how fast it learns.

    A node is a drafted token. A row's price is what a row adds to a step, in tokens of one request at
    the speed of plain decoding. A wait is given as the first and the longest one. A memory is the
    number of values after which older ones fade from a running mean.
    """

    # Above this price of a row only the cheapest of several drafters is asked: what others add makes
    # a few requests faster and every step slower.
    max_row_price: float = 0.4
    priced_nodes: int = 3  # of every request, over which a row is priced: the first are cheaper

    # Planner
    most_nodes: int = 24  # of a request in a step: deeper nodes hardly ever survive
    # of a plain step: cheaper nodes count as free; many are drafted, then cut
    free_node: float = 0.03
    least_budget: int = 4  # nodes that a free drafter is asked for; more where more paid last time
    ask_wait: tuple[int, int] = (8, 8)  # steps between proposals that do not pay: they cost little
    probe_wait: tuple[int, int] = (16, 256)  # steps without a node, so that no estimate stays wrong

    # Acceptance model
    prior_chance: float = 0.7  # of a node whose drafter gives no score, before anything was seen
    prior_nodes: float = 4.0  # judged nodes as which the prior, or a score, counts
    node_memory: float = 256.0  # of each kind of node, over all requests: texts change slowly
    deepest: int = 8  # deeper nodes are too rare to be counted by depth
    score_bins: int = 5  # fine enough to correct scores, coarse enough to fill soon
    prior_yield: tuple[float, float] = (0.4, 0.5)  # nodes accepted and run for each proposal
    yield_memory: float = 200.0  # proposals of all requests, with which a new request begins
    yield_begun: float = 4.0  # proposals as which that counts then
    own_yield_memory: float = 24.0  # of a request's own: its text may soon change
    bias_rate: float = 0.25  # of a logit, by which one node moves a request: a few must be enough
    bias_limit: float = 3.0  # of a logit: from further off it would take long to come back
    bias_decay: float = 0.99  # every step: old results say little

    # Costs of steps and drafts
    table_rows: int = 1024  # beyond, a step takes as much more as its rows
    # weight of the newest step without drafts, and with: the machine's speed changes within seconds
    plain_rate: float = 0.4
    drafted_rate: float = 0.1
    # limit of a step's ratio to recent speed: of fast steps, and of slow plain ones
    step_limit: float = 2.0
    # the same limit for a slow step with drafts. It is lower: a row count that once looks slow is not run again,
    # and so is never corrected
    drafted_limit: float = 1.3
    # memory of a row count's time relative to others, in steps: caches are colder in use than when measured
    shape_memory: float = 32.0
    # steps of a row count before it counts for the machine's speed
    shape_begun: float = 8.0
    # with each new table, of row counts that did not run; where nothing but one did
    shape_fading: tuple[float, float] = (0.99, 0.96)
    table_every: int = 8  # steps between new tables, which take some 50 us
    # steps in which a drafter was asked and no node ran: they tell what asking makes a step longer
    after_ask_memory: float = 64.0
    most_after_ask: float = 0.25  # of a plain step: were more believed, rows would seem to be free
    held_up: float = 4.0  # a time counts as at most this many times the usual: the rest was a delay
    draft_memory: float = 10.0  # proposals: times depend on the text's length
    # after a prompt, till the machine is fast again: they do not count as usual steps, but where prompts come so
    # often that few others would be left
    cold_steps: int = 6

    # Loss budget, in plain steps
    # of a new request where the shared budget is half full; less before anything is known
    first_loss: float = 1.0
    first_level: float = 0.7  # of the shared budget to begin with; 2 where drafts save much
    # that a request may lose after its drafts saved much: a text that turns is noticed
    most_loss: float = 6.0
    kept_drafts: float = 4.0  # as many drafts at least, where one takes more
    loss_refill: float = 0.015  # of its time, that drafts may lose in the long run
    # left before drafting goes on after a pause; more where the last draft took more
    resume_loss: float = 0.5
    # shared by new requests, for each place of a batch
    most_shared_loss: float = 12.0
    shared_refill: float = 0.015  # of all time, for new requests
    step_slack: float = 2.0  # a step counts as at most this many times as fast or slow as usual

    # Selection among several drafters
    prior_gain: float = 1.0  # tokens that a drafter is assumed to gain: so every one is tried
    own_gain_memory: float = 10.0  # proposals of a request's own
    own_chance_memory: float = 64.0  # nodes
    sure: float = 0.8  # a node's score from which its drafter is sure of it
    gain_memory: float = 50.0  # of all requests, with which a new request begins
    gain_begun: float = 3.0  # own proposals; the gain of all requests counts as this many then
    most_calibration: float = 1.5  # limit to which scores that promise too little are scaled up
    ask_memory: float = 50.0  # proposals: the time of an ask hardly changes
    # prior of a drafter's burst length in proposals, and its weight in bursts: the first ask is slow
    prior_run: tuple[float, float] = (8.0, 2.0)
    ask_overhead: float = 1.5  # times the time of asking: features, and the work of larger steps
    most_overhead: float = (
        0.15  # of a plain step: slow drafters make steps no larger than fast ones
    )
    # steps from one try of a drafter that pays for no request to the next
    select_wait: tuple[int, int] = (8, 128)
    waking: int = 4  # last steps of that wait, which gather its features: drafting needs some


TUNING = SpeculationTuning()
