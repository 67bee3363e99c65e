"""One request's state: integers and lists, no tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from fastslow.engine.accept import Rule, tokenwise
from fastslow.engine.params import SamplingParams, Speculation
from fastslow.engine.stop import Stopper
from fastslow.engine.thinking import Thinking
from fastslow.engine.types import Policy


@dataclass(slots=True)
class Tally:
    """What speculation did for one request."""

    steps: int = 0  # forwards that gave tokens
    drafted: int = 0  # nodes that were verified
    accepted: int = 0
    cut: int = 0  # nodes that were proposed and not worth verifying
    runs: list[int] = field(default_factory=list)  # accepted in each step
    offered_at: list[int] = field(default_factory=list)  # steps whose draft was this deep
    accepted_at: list[int] = field(default_factory=list)  # of them, accepted to this depth
    preemptions: int = 0
    cached: int = 0  # prompt tokens found in the prefix cache
    draft_seconds: float = 0.0  # of steps that this request was part of
    verify_seconds: float = 0.0
    first_token: float = 0.0  # seconds, monotonic clock
    last_token: float = 0.0

    def add(self, drafted: int, depth: int, accepted: int) -> None:
        """One step: nodes drafted, depth of their tree, length of the accepted path."""
        self.steps += 1
        self.drafted += drafted
        self.accepted += accepted
        self.runs.append(accepted)
        missing = depth - len(self.offered_at)
        self.offered_at += [0] * missing
        self.accepted_at += [0] * missing
        for d in range(depth):
            self.offered_at[d] += 1
            self.accepted_at[d] += d < accepted


@dataclass(eq=False, slots=True)
class Request:
    """`0 <= computed <= len(tokens)`; a request that decodes has exactly one token not computed."""

    id: int
    tokens: list[int]
    prompt_length: int
    params: SamplingParams
    speculation: Speculation
    policy: Policy
    stopper: Stopper
    groups: int | None
    seed: int
    reach: int  # the longest text whose rows may run: all that it may become but the last token
    end_ids: frozenset[int] = frozenset()
    rule: Rule = tokenwise
    reproducible: bool = False
    thinking: Thinking | None = None  # of a model that has thinking tags
    root: Hashable = None  # prefix-cache key: whatever besides the tokens changes the KV
    computed: int = 0
    tally: Tally = field(default_factory=Tally)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    prompt_logprobs: list[dict[int, float]] = field(default_factory=list)
    error: BaseException | None = None
    listener: Callable[[Request], None] | None = None  # called when there is news

    @property
    def pending(self) -> int:
        """Tokens whose KV is still to be computed: 1 while decoding, more while a prompt is read."""
        return len(self.tokens) - self.computed

    @property
    def done(self) -> bool:
        return self.stopper.reason is not None

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether rows of the prompt still have log-probabilities to give."""
        missing = len(self.prompt_logprobs) < self.prompt_length - 1
        return self.params.prompt_logprobs is not None and missing

    def tell(self) -> None:
        """Let whoever waits know."""
        if self.listener is not None:
            self.listener(self)
