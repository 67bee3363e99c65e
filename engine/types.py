"""The values that pass between the rooms (trees, rows, accepted tokens), and protocols for what makes them.

Letters: B requests, N draft nodes, T rows, M rows whose logits are wanted, V vocabulary, F feature dim.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from fastslow.engine.params import SamplingParams, Speculation
    from fastslow.engine.token_mask import GrammarRule

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Features: TypeAlias = "torch.Tensor | Floats"  # the CPU kernels give arrays

TARGET = "target"  # where a token came from: the model itself
PREDICTION = "prediction"  # that the caller gave
ANSWERED = "answered"  # that the call brought: another engine made it
FORCED = "forced"  # no other token could come there, as where a thinking budget ends a thought


@dataclass(frozen=True)
class Tree:
    """Draft of one request: a tree hanging off its last committed token. An empty one IS ordinary
    decoding.

    `parents[i] < i` is a node of the same tree, -1 the last committed token. `probs` f32 [n, V]: the
    probabilities that each node was *sampled* from; None: the nodes were chosen, not sampled.
    `scores`: the drafter's estimate that a node is accepted with all before it, in 0..1; None: it
    gives none. Scores of sampled nodes must not depend on what was sampled.
    `drafter_ids`: which of several drafters made a node, as any number; acceptance is learnt for every number
    apart. None: there is one drafter.
    `drafter_names`: the name of every node's drafter. None: the one that the request asked for made all.
    """

    tokens: Sequence[int] = ()
    parents: Sequence[int] = ()
    probs: Floats | None = None
    scores: Sequence[float] | None = None
    drafter_ids: Sequence[int] | None = None
    drafter_names: Sequence[str] | None = None

    @classmethod
    def chain(
        cls,
        tokens: Sequence[int],
        probs: Floats | None = None,
        scores: Sequence[float] | None = None,
    ) -> Tree:
        """A tree without branches: each token follows the one before it."""
        return cls(tokens, range(-1, len(tokens) - 1), probs, scores)

    @cached_property
    def depths(self) -> list[int]:
        """Of every node; children of the last committed token have depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths

    def match(self, tokens: Sequence[int]) -> list[int]:
        """The nodes that hold these tokens, root to leaf, as far as there are any."""
        nodes: list[int] = []
        for node, (token, parent) in enumerate(zip(self.tokens, self.parents)):
            size, leaf = len(nodes), nodes[-1] if nodes else -1
            if size < len(tokens) and (token, parent) == (tokens[size], leaf):
                nodes.append(node)
        return nodes

    def only(self, nodes: Sequence[int]) -> Tree:
        """The tree of these nodes, which ascend and hold every node's parent."""
        if len(nodes) == len(self.tokens):
            return self
        place = {-1: -1, **{node: i for i, node in enumerate(nodes)}}
        return Tree(
            [self.tokens[i] for i in nodes],
            [place[self.parents[i]] for i in nodes],
            None if self.probs is None else self.probs[list(nodes)],
            None if self.scores is None else [self.scores[i] for i in nodes],
            None if self.drafter_ids is None else [self.drafter_ids[i] for i in nodes],
            None if self.drafter_names is None else [self.drafter_names[i] for i in nodes],
        )


class OneHot(NamedTuple):
    """Probability 1 for one token, as at temperature 0: V numbers that need not be written out."""

    token: int
    probs: Floats | None = None  # [V] at temperature 1, where a rule scores by them


Probs = Floats | OneHot
"""Probabilities of the next token: f32 [V] that sum to 1, or one token that has them all."""


class FailedRow(NamedTuple):
    """A drafted row that has no probabilities: its node may be accepted, but nothing after it.

    Plain decoding would meet the error only if the answer came here. So the answer ends its step with this node,
    and meets it in the next one.
    """

    error: Exception


class LogitBoost(NamedTuple):
    """A token whose logit is raised."""

    token: int
    by: float


@dataclass(slots=True)
class ModelOutput:
    """Output of a forward: logits f32 [M, V] and, if asked for, features [S, F] of `Rows.feature_rows`.

    Rows of `only_best` have no logits (the memory holds anything, and where all rows are such, logits
    may be [0, V]) but a token in `best` [M]: the first of the likeliest, or -1 where some logit is
    not finite. `best` is -1 for all other rows; where a soft cap makes large logits equal, theirs is there, too.
    """

    logits: torch.Tensor
    seen: Features | None
    best: Ints

    @property
    def features(self) -> torch.Tensor | None:
        """`seen`, as a tensor."""
        import torch

        return None if self.seen is None else torch.as_tensor(self.seen)


@dataclass(slots=True)
class AcceptResult:
    """Accepted nodes and tokens, by request."""

    accepted_nodes: list[list[int]] = field(default_factory=list)  # of its tree, root to leaf
    tokens: list[list[int]] = field(default_factory=list)  # of these nodes, then one of the target

    def cut(self, b: int, size: int) -> None:
        """Keep the first `size` tokens of request b, and their nodes."""
        if size == len(self.tokens[b]):
            return
        self.tokens[b] = self.tokens[b][:size]
        self.accepted_nodes[b] = self.accepted_nodes[b][: max(0, size - 1)]


class ThinkingRule(Protocol):
    """Rule by which the steering of a thought changes the target's probabilities: a function of the text and of the
    model's own probabilities after it, so it holds for drafted tokens as for committed ones."""

    def at(
        self, tokens: Sequence[int], drafted: Sequence[int], best: Callable[[], int] | None = None
    ) -> OneHot | LogitBoost | None:
        """For the token after `tokens` and then `drafted`: the one that is forced, or a logit that is
        raised, or nothing. `best`: the model's likeliest there, which some give way to; None = not known."""

    def ahead(self, tokens: Sequence[int]) -> Sequence[int]:
        """Tokens that are forced after `tokens`."""

    def lifts(self, tokens: Sequence[int]) -> bool:
        """Tell whether a logit may be raised within one step after `tokens`."""

    def inside(self, tokens: Sequence[int], drafted: Sequence[int] = ()) -> bool:
        """Tell whether `tokens` and then `drafted` end inside a thought."""

    def no_end(
        self, tokens: Sequence[int], drafted: Sequence[int]
    ) -> tuple[frozenset[int], int | None]:
        """Return the forbidden tokens after `tokens` and then `drafted`: end tokens, and the opening of a thought
        without room. Inside a thought also return the token that replaces them and closes the thought."""


class RequestView(Protocol):
    """View of a request: what drafters and policies may know of it."""

    @property
    def id(self) -> int: ...
    @property
    def tokens(self) -> list[int]: ...  # prompt and answer so far
    @property
    def prompt_length(self) -> int: ...
    @property
    def end_ids(self) -> frozenset[int]: ...  # token ids that end the answer
    @property
    def computed(self) -> int:
        """The number of `tokens` whose KV is in the target's cache."""

    @property
    def params(self) -> SamplingParams: ...
    @property
    def speculation(self) -> Speculation: ...
    @property
    def drafter(self) -> str: ...  # the name of its drafter, for drafts that do not name one
    @property
    def reproducible(self) -> bool:
        """Its tokens must depend on probabilities, seed and places alone. A drafter that would sample
        may draw its nodes with the numbers of acceptance instead, and say they are chosen."""

    @property
    def thought_params(
        self,
    ) -> SamplingParams | None: ...  # of tokens in a thought; None = `params`
    @property
    def thinking(self) -> ThinkingRule | None: ...  # how its thoughts are bounded
    @property
    def grammar(self) -> GrammarRule | None: ...  # what its answer has to look like
    @property
    def groups(self) -> int | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def max_len(self) -> int: ...
    @property
    def memory_key(self) -> str | None: ...  # only requests of one key share what is remembered
    @property
    def shared(self) -> bool: ...  # whether later requests may use its text
    @property
    def prediction(self) -> Sequence[int]: ...  # of its answer, by the caller; only its own


class Drafter(Protocol):
    """Proposes tokens for the target to verify."""

    features: tuple[int, ...]  # target layers it reads; () for none. Read after each `propose`

    def propose(self, batch: Sequence[RequestView], nodes: Sequence[int]) -> list[Tree]:
        """A tree for each request, of at most nodes[b] nodes; 0 is allowed, and so is an empty tree."""

    def wants(self, batch: Sequence[RequestView], rows: Sequence[range]) -> list[range]:
        """The rows of text whose features it wants: of each request's positions that the step reads
        (without the last one), a range, perhaps empty. Asked after `propose`, where there are such
        rows; `features` may grow by it. Rows from the prefix cache are never offered."""

    def read(self, batch: Sequence[RequestView], rows: Sequence[range], features: Features) -> None:
        """Called after the step, before `commit`: features [C, F] of the wanted rows, by request. F may
        hold more layers than `features`, where other drafters read them."""

    def commit(
        self, batch: Sequence[RequestView], result: AcceptResult, features: Features | None
    ) -> None:
        """Called after every step, when the requests hold the new tokens. `features` [C, F], request by
        request: the rows of the last token before the step and of its accepted nodes; None where no
        layers are read."""

    def forget(self) -> None:
        """Let go of texts of requests that are over. Those that run are not `shared` any more."""

    def release(self, requests: Collection[int]) -> None:
        """These requests are over: free what is held for them. Unknown ids are fine."""


class Policy(Protocol):
    """Decides how far to draft; one for every request."""

    def plan(self, request: RequestView, running: int) -> int:
        """Most draft nodes of the next step; 0 = plain decoding. running: requests that run."""

    def survival(self, tree: Tree) -> Sequence[float] | None:
        """Return each drafted node's probability of being accepted with all before it; the step runs those
        that pay over the whole batch. None: all of them."""

    def record(self, tree: Tree, accepted: Sequence[int]) -> None:
        """Called after a step with the tree that was verified, and its accepted nodes."""


class StepTiming(NamedTuple):
    """A step that is over."""

    rows: int
    seconds: float  # drafting not counted
    drafting: float  # seconds
    tokens: int  # committed
    pure: bool  # no prompt was read: all rows are last tokens of answers, and drafts


class DraftCall(NamedTuple):
    """A drafter was asked. asked: for how many requests, which have these memory keys. depth: of the deepest tree."""

    drafter: object
    seconds: float
    asked: int
    depth: int
    keys: Collection[str | None] = (None,)
    adaptive: bool = False  # it chooses among several itself, by what each takes


class StepCostModel(Protocol):
    """Knows how long steps take, and decides which drafted nodes to run."""

    def nodes_that_pay(
        self,
        batch: Sequence[RequestView],
        survival: Sequence[Sequence[float] | None],
        sizes: Sequence[int],
        rows: int,
    ) -> list[list[int]]:
        """For each request, the nodes to run; `rows` are the step's other rows."""

    def note(self, batch: Sequence[RequestView], step: StepTiming) -> None:
        """Record the time that a step took, and what it made."""

    def seconds(self, groups: int | None, rows: int) -> float:
        """Seconds that a step of these rows takes, if none runs more than these routed groups or experts."""

    def draft_seconds(self, drafter: object, key: str | None, asked: int) -> float | None:
        """Seconds that a drafter takes for a node of depth, asked for so many requests, by what those of a memory key
        took; None: unknown, or nothing."""


class MarginalValue(NamedTuple):
    """Seconds of a step that one more token gains and one more row costs."""

    token: float  # gained by one more accepted token of one request
    row: float  # taken by one more row
