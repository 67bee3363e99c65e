"""From a latency to a plan: the largest batch, and how far to draft."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from fastslow.tools.plan.step import ForwardWork, Setting, Terms

# decoder layers that a drafted token runs, and then the head
PLANNED_DRAFTERS = {"mtp": 1, "free": 0}
MOST_NODES = 8
MOST_REQUESTS = 1 << 16
MOST_CARDS = 1024
USABLE = 0.95  # of a card's memory; the rest is for activations and what runs beside


@dataclass(frozen=True, slots=True)
class DraftCost:
    """A drafter's cost and its acceptance."""

    acceptance: float  # chance that a drafted token is accepted if those before it were
    drafter: str = "mtp"  # a layer and the head for each token; free: looked up in text

    @classmethod
    def of(cls, acceptance: float, drafter: str) -> DraftCost:
        """Read `acceptance`: below 1 per position; from 1 on as tokens per step t of an endless draft, a = 1 - 1/t."""
        return cls(acceptance if acceptance < 1 else 1 - 1 / acceptance, drafter)

    def tokens(self, nodes: int) -> float:
        """Mean tokens of a step that drafts `nodes`: 1 + a + a^2 + ... (Leviathan et al., arXiv 2211.17192)."""
        return float(sum(self.acceptance**i for i in range(nodes + 1)))

    def step(self, setting: Setting, requests: int, nodes: int, context: float) -> Terms:
        """A step that drafts `nodes` tokens for each request, one after the other, and verifies them."""
        verify = setting.decode(requests, nodes + 1, context)
        if not nodes or not PLANNED_DRAFTERS[self.drafter]:
            return verify
        layer: ForwardWork = setting.work.only(PLANNED_DRAFTERS[self.drafter])
        return verify + setting.of(layer).decode(requests, 1, context) * nodes


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """A draft length with the batch it goes with."""

    nodes: int  # tokens drafted per request and step
    batch: int  # requests on all cards
    tokens: float  # per request and step, on average
    terms: Terms  # seconds of the step, drafting included
    cards: int
    memory: float  # bytes on each card
    bound: str  # what keeps the batch from growing: latency or memory; asked: it was given

    @property
    def latency(self) -> float:
        """Seconds per token of a request."""
        return self.terms.seconds / self.tokens

    @property
    def rate(self) -> float:
        """Tokens per second and card."""
        return self.batch / self.latency / self.cards


def fewest_cards(setting: Setting, context: int, batch: int = 1) -> Setting:
    """The setting on the fewest cards that hold the weights and a batch of requests of `context` tokens.
    ValueError: too many cards would be needed."""
    room = setting.device.memory * USABLE
    for cards in range(1, MOST_CARDS + 1):
        grown = replace(setting, cards=cards)
        if grown.memory(batch, context) <= room:
            return grown
    raise ValueError(f"more than {MOST_CARDS} cards of {setting.device.name} would be needed")


def choose_batches(
    setting: Setting, drafting: DraftCost, context: int, latency: float
) -> list[PlanChoice]:
    """For each draft length, the largest batch of requests of `context` tokens within memory and a latency
    of seconds per token. ValueError: the weights do not fit, or one request alone is slower."""
    room = setting.device.memory * USABLE
    if setting.memory(1, context) > room:
        raise ValueError(
            f"cards={setting.cards}: a card would hold {setting.memory(1, context) / 1e9:.1f} GB of "
            f"weights and one request, but has {room / 1e9:.1f} GB to use"
        )
    fitting = largest(lambda batch: setting.memory(batch, context) <= room)
    found = []
    for nodes in range(MOST_NODES + 1):
        plan = partial(_choice, setting, drafting, context, nodes)
        quick = largest(lambda batch, plan=plan: plan(batch, "").latency <= latency)  # type: ignore[misc]
        if batch := min(fitting, quick):
            found.append(plan(batch, "memory" if batch == fitting else "latency"))
    if not found:
        alone = min(choose_nodes(setting, drafting, context, 1), key=lambda c: c.latency)
        raise ValueError(
            f"latency-ms={1000 * latency:g} cannot be reached: one request alone takes "
            f"{1000 * alone.latency:.1f} ms per token"
        )
    return found


def choose_nodes(
    setting: Setting, drafting: DraftCost, context: int, batch: int
) -> list[PlanChoice]:
    """Every draft length at a batch that is given, whether memory holds it or not."""
    lengths = range(MOST_NODES + 1)
    return [_choice(setting, drafting, context, n, batch, "asked") for n in lengths]


def best(choices: Sequence[PlanChoice]) -> PlanChoice:
    """The one of most tokens per second; the shorter draft on a tie."""
    return max(choices, key=lambda choice: (choice.rate, -choice.nodes))


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number below 65536 that fits, where smaller ones fit as well; 0 = none."""
    return bisect_left(range(1, MOST_REQUESTS), True, key=lambda number: not fits(number))


def _choice(
    setting: Setting, drafting: DraftCost, context: int, nodes: int, batch: int, bound: str
) -> PlanChoice:
    terms = drafting.step(setting, batch, nodes, context)
    memory = setting.memory(batch, context)
    tokens = drafting.tokens(nodes)
    return PlanChoice(nodes, batch, tokens, terms, setting.cards, memory, bound)
