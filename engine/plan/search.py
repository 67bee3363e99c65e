"""From a latency to a plan: the largest batch, and how far to draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastslow.engine.plan.speculation import Drafting
from fastslow.engine.plan.step import Setting, Terms

MOST_NODES = 8
MOST_REQUESTS = 1 << 16
USABLE = 0.95  # of a card's memory; the rest is for activations and what runs beside


@dataclass(frozen=True, slots=True)
class Choice:
    """A draft length with the batch it goes with.

    Attributes:
        nodes: tokens drafted per request and step.
        batch: requests on all cards together.
        tokens: per request and step, on average.
        terms: seconds of the step, drafting included.
        cards: how many.
        memory: bytes on each card.
        bound: what keeps the batch from growing: "latency" or "memory"; "asked" for one that was given.
    """

    nodes: int
    batch: int
    tokens: float
    terms: Terms
    cards: int
    memory: float
    bound: str

    @property
    def latency(self) -> float:
        """Seconds per token of a request."""
        return self.terms.seconds / self.tokens

    @property
    def rate(self) -> float:
        """Tokens per second and card."""
        return self.batch / self.latency / self.cards


def choose_batches(
    setting: Setting, drafting: Drafting, context: int, latency: float
) -> list[Choice]:
    """For each draft length that a request can have, the largest batch within latency and memory.

    Args:
        context: tokens of a request, prompt and answer so far.
        latency: seconds per token, at most.

    Raises:
        ValueError: the weights do not fit, or one request alone is slower.
    """
    room = setting.device.memory * USABLE
    if setting.memory(1, context) > room:
        raise ValueError(
            f"cards={setting.cards}: a card would hold {_gb(setting.memory(1, context))} of weights "
            f"and one request, but has {_gb(room)} to use"
        )
    fitting = largest(lambda batch: setting.memory(batch, context) <= room)
    found = []
    for nodes in range(MOST_NODES + 1):
        plan = _planner(setting, drafting, context, nodes)
        batch = min(fitting, largest(lambda n, plan=plan: plan(n, "").latency <= latency))  # type: ignore[misc]
        if batch:
            found.append(plan(batch, "memory" if batch == fitting else "latency"))
    if not found:
        alone = min(choose_nodes(setting, drafting, context, 1), key=lambda c: c.latency)
        raise ValueError(
            f"latency-ms={1000 * latency:g} cannot be reached: one request alone takes "
            f"{1000 * alone.latency:.1f} ms per token"
        )
    return found


def choose_nodes(setting: Setting, drafting: Drafting, context: int, batch: int) -> list[Choice]:
    """Every draft length at a batch that is given, whether memory holds it or not."""
    lengths = range(MOST_NODES + 1)
    return [_planner(setting, drafting, context, n)(batch, "asked") for n in lengths]


def best(choices: Sequence[Choice]) -> Choice:
    """The one of most tokens per second; the shorter draft on a tie."""
    return max(choices, key=lambda choice: (choice.rate, -choice.nodes))


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number up to 65536 that fits, where smaller ones fit as well; 0 = none."""
    low, high = 0, 1
    while high < MOST_REQUESTS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _planner(
    setting: Setting, drafting: Drafting, context: int, nodes: int
) -> Callable[[int, str], Choice]:
    def plan(batch: int, bound: str) -> Choice:
        terms = drafting.step(setting, batch, nodes, context)
        memory = setting.memory(batch, context)
        tokens = drafting.tokens(nodes)
        return Choice(nodes, batch, tokens, terms, setting.cards, memory, bound)

    return plan


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
