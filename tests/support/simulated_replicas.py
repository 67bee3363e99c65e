"""A clock and replicas for tests of the router: 8 places whose steps each answer makes longer, a cache without end."""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from routing_tools import deep, report, request
from serve_tools import Clock

from fastslow.serve.engines.routing.chooser import ReplicaChooser
from fastslow.serve.engines.routing.request import RoutedRequest
from fastslow.serve.engines.routing.settings import RoutingSettings

PLACES = 8
STEP, MORE = 0.05, 0.005  # seconds of a step with one row, and of each further one of the first 8
BOTS, TURNS, PAUSE = 6, 4.0, 30.0  # system prompts; mean questions of a chat, and seconds between two
BEFORE = 3 * TURNS * PAUSE  # seconds before the trace in which chats began that are in their middle
REQUESTS = 600


@dataclass(eq=False)
class Asked:
    """A request of a trace. pieces: the texts of its prompt, those that others may share first."""

    arrival: float
    pieces: tuple[str, ...]
    answer: int  # tokens
    routed: RoutedRequest
    made: int = 0
    first: float = 0.0  # seconds from its arrival to its first token
    cached: int = 0  # tokens of its prompt that its replica had read

    @property
    def rank(self) -> tuple[bool, float]:
        return not self.routed.urgent, self.arrival


def beginnings(pieces: tuple[str, ...]) -> list[tuple[str, ...]]:
    """A text's first piece, its first two, and so on."""
    return list(itertools.accumulate((piece,) for piece in pieces))


@dataclass
class Replica:
    """Steps of what runs; a prompt is read in one step. Quick requests with a target start first."""

    running: list[Asked] = field(default_factory=list)
    waiting: list[Asked] = field(default_factory=list)
    read: set[tuple[str, ...]] = field(default_factory=set)  # beginnings of texts

    def start(self) -> float:
        """Who waits takes the free places; the seconds of the next step."""
        self.waiting.sort(key=lambda one: one.rank)
        free = PLACES - len(self.running)
        rows = len(self.running)
        for one in self.waiting[:free]:
            one.cached = sum(len(text[-1]) // 4 for text in beginnings(one.pieces) if text in self.read)
            rows += one.routed.prompt_tokens - one.cached
        self.running += self.waiting[:free]
        del self.waiting[:free]
        return STEP + MORE * (min(rows, PLACES) - 1)

    def end(self, now: float) -> list[Asked]:
        """A step has ended: each that ran has a token more. Those that are over."""
        for one in self.running:
            one.made += 1
            if one.made == 1:
                one.first = now - one.arrival
                self.read.update(beginnings(one.pieces))
        over = [one for one in self.running if one.made >= one.answer]
        self.running = [one for one in self.running if one.made < one.answer]
        return over


def simulate(trace: list[Asked], replicas: int, settings: RoutingSettings) -> None:
    """Fill in what becomes of each request of a trace, by its arrival: the router sends, and hears once a second."""
    clock = Clock()
    start, order = clock.now, itertools.count()
    events: list[tuple[float, int, Callable[[], None]]] = []
    machines = {f"r{n}": Replica() for n in range(replicas)}
    router = ReplicaChooser(settings, clock)
    router.set_replicas(machines)
    open_requests = len(trace)

    def at(time: float, event: Callable[[], None]) -> None:
        heapq.heappush(events, (time, next(order), event))

    def send(asked: Asked) -> None:
        id = router.rank(asked.routed)[0]
        router.routed(asked.routed, id)
        machine = machines[id]
        machine.waiting.append(asked)
        if not machine.running:
            at(clock.now + machine.start(), partial(step, machine))

    def step(machine: Replica) -> None:
        nonlocal open_requests
        for one in machine.end(clock.now - start):
            router.ended(one.routed.id)
            open_requests -= 1
        if machine.running or machine.waiting:
            at(clock.now + machine.start(), partial(step, machine))

    def tell(id: str) -> None:
        machine = machines[id]
        running, waiting = ([one.routed for one in some] for some in (machine.running, machine.waiting))
        oldest = min((one.arrival for one in machine.waiting), default=clock.now - start)
        everyone = running + waiting
        said = report(
            clock.now,
            running=Counter(one.mode for one in running),
            waiting=Counter(one.mode for one in waiting),
            deep=sum(one.deep for one in everyone),
            urgent=sum(one.urgent for one in everyone),
            queue_seconds=clock.now - start - oldest,
            step_seconds={"fast": STEP + MORE * max(0, len(running) - 1)},
            places=PLACES,
        )
        router.report(id, said)
        at(clock.now + 1.0, partial(tell, id))

    for one in trace:
        at(start + one.arrival, partial(send, one))
    for place, id in enumerate(machines):
        at(start + place / replicas, partial(tell, id))
    while open_requests:
        clock.now, _, event = heapq.heappop(events)
        event()


def make_trace(rate: float, think: float, system: int) -> list[Asked]:
    """Chats of bots, whose turns repeat what was said, and questions that need thought. rate: requests a second.
    think: share that thinks. system: tokens of a bot's prompt."""
    random = Random(0)
    length = REQUESTS / rate
    found: list[Asked] = []

    def tokens(median: int) -> int:
        return max(1, round(median * random.lognormvariate(0, 0.8)))

    for chat in range(round(rate * (1 - think) / TURNS * (length + BEFORE))):
        now = random.uniform(-BEFORE, length)
        bot = min(int(random.paretovariate(1.0)) - 1, BOTS - 1)
        said: tuple[str, ...] = (f"bot {bot} ".ljust(4 * system, "x"),)
        for turn in itertools.count():
            question = (*said, f"chat {chat} turn {turn} ".ljust(4 * tokens(60), "y"))
            if 0 <= now <= length:
                routed = request("".join(question), latency_ms=1000.0)
                found.append(Asked(now, question, tokens(10), routed))
            if random.random() < 1 / TURNS:
                break
            said, now = (*question, "z" * 40), now + random.expovariate(1 / PAUSE)
    for place in range(round(REQUESTS * think)):
        text = f"{place} ".ljust(4 * tokens(180), "?")
        found.append(Asked(random.uniform(0, length), (text,), tokens(400), deep(text)))
    return sorted(found, key=lambda one: one.arrival)
