"""State of a request: integers and lists, no tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loguru import logger

from fastslow.engine.core.request_parts import (
    AnswerLog,
    Drafting,
    EncodedPrompt,
    KnownAnswer,
    KVHistory,
    Scheduling,
    Sharing,
    Timing,
)
from fastslow.engine.core.spec_decode_stats import SpecDecodeStats
from fastslow.engine.params import Mode, SamplingParams, Speculation
from fastslow.engine.sampling.accept.exact import Accepted, RngAt, Rule, TargetProbsAt, tokenwise
from fastslow.engine.sampling.accept.lossy import LossyStepwise
from fastslow.engine.sampling.confidence import AnswerProbe, Confidence, PromptProbe
from fastslow.engine.sampling.grammars.grammar import Grammar, GrammarError
from fastslow.engine.sampling.stop import Reason, Stopper
from fastslow.engine.sampling.thinking import Thinking
from fastslow.engine.token_mask import CERTAIN
from fastslow.engine.types import ANSWERED, Tree

Listener = Callable[["Request"], None]


@dataclass(frozen=True, slots=True)
class EscalationTarget:
    """A mode that a request changes to when its confidence falls, or that its probe takes."""

    mode: Mode
    keep: bool = False  # its KV stays as it is: lossy
    thinking: Thinking | None = None  # of the same text, by that mode's settings
    successor: Request | None = None  # answers instead of it, from the beginning

    @property
    def groups(self) -> int | None:
        return self.mode.routed

    def note(self, confidence: Confidence | PromptProbe) -> str:
        """Say what happened, for people."""
        how = "keeping its KV, lossy" if self.keep else "recomputed"
        if self.successor is not None:
            how = f"begun again, {confidence.tokens} tokens dropped"
        return f"{self.mode.name} from token {confidence.tokens}: {confidence} ({how})"


@dataclass(slots=True)
class EscalationState:
    """State of a request that may change to another mode.

    Attributes:
        confidence: decides whether it does.
        target: the mode that it changes to, once that is known.
        targets: those that a probe chooses from.
        kept: the part of its text whose KV is the first mode's.
    """

    confidence: Confidence | PromptProbe
    target: EscalationTarget | None = None
    targets: Sequence[EscalationTarget] = ()
    kept: KVHistory | None = None

    @property
    def successors(self) -> list[Request]:
        """Successors that answer from the beginning in another mode."""
        targets = self.targets if self.target is None else [self.target]
        return [target.successor for target in targets if target.successor is not None]


@dataclass(eq=False, slots=True, weakref_slot=True)
class Request:
    """State of one answer while the engine generates it.

    `tokens` is the text so far: `prompt_length` tokens of prompt, then the answer. The KV of its first `computed`
    tokens is in the cache. A request that decodes has exactly one token that is not computed, the last one.
    """

    id: int
    prompt: EncodedPrompt
    params: SamplingParams
    drafting: Drafting
    stopper: Stopper
    groups: int | None  # that run, or experts of a model without groups; None = all
    seed: int
    max_len: int  # the longest text whose rows may run: all that it may become but the last token
    sharing: Sharing = field(default_factory=Sharing)
    end_ids: frozenset[int] = frozenset()
    rule: Rule = tokenwise
    reproducible: bool = False
    thinking: Thinking | None = None  # of a model that has thinking tags
    # of tokens in a thought, where they have their own
    thought_params: SamplingParams | None = None
    by_phase: tuple[Drafting, Drafting] | None = None  # of the answer, and of thoughts
    grammar: Grammar | None = None  # what its answer has to look like
    computed: int = 0
    spec_stats: SpecDecodeStats = field(default_factory=SpecDecodeStats)
    log: AnswerLog = field(default_factory=AnswerLog)
    known: KnownAnswer = field(default_factory=KnownAnswer)
    error: BaseException | None = None
    listener: Listener | None = None  # called after every step of the request
    prediction: Sequence[int] = ()  # of its answer, by the caller
    share: str | None = None  # who asks: the places of a step are dealt out among these
    scheduling: Scheduling = field(default_factory=Scheduling)
    timing: Timing = field(default_factory=Timing)
    mode: Mode = field(default_factory=Mode)  # that was asked for
    escalation: EscalationState | None = None  # of one that may change to another mode
    tokens: list[int] = field(init=False)
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens, self.prompt_length = list(self.prompt.tokens), len(self.prompt.tokens)

    def enter_phase(self) -> None:
        """Select the speculation of the current part: the thought or the answer."""
        if self.by_phase is None:
            return
        begun = self.grammar is not None and self.grammar.begun(self.tokens)
        inside = self.thinking is not None and not begun and self.thinking.inside(self.tokens)
        self.drafting = self.by_phase[inside]

    @property
    def speculation(self) -> Speculation:
        """Speculation settings of the current part."""
        return self.drafting.speculation

    @property
    def memory_key(self) -> str | None:
        """Memory key: only requests with the same key share text and KV."""
        return self.sharing.memory_key

    @property
    def shared(self) -> bool:
        """True where later requests may use its text and its KV."""
        return self.sharing.allowed

    @property
    def drafter(self) -> str:
        """The name of its drafter: the source of drafted tokens whose tree names none."""
        return self.drafting.own_drafter or self.drafting.speculation.drafter

    @property
    def kept(self) -> KVHistory | None:
        """The part of its text whose KV it kept when it changed its groups."""
        return None if self.escalation is None else self.escalation.kept

    @property
    def mask_seconds(self) -> float:
        """Processor time that a row's mask takes; following the tokens before it takes about as long, or less."""
        return 0.0 if self.grammar is None else self.grammar.seconds

    @property
    def current_groups(self) -> int | None:
        """Groups of the next row."""
        if self.escalation is None or (kept := self.escalation.kept) is None:
            return self.groups
        return kept.groups if self.computed < kept.length else self.groups

    @property
    def root(self) -> tuple[int | None, int, str | None]:
        """Prefix-cache key: whatever besides the tokens changes the KV of its first rows."""
        return *self.shared_root, self.sharing.memory_key

    @property
    def shared_root(self) -> tuple[int | None, int]:
        """The same key without the memory key: by it, requests of all memory keys find pinned text."""
        kept = self.kept
        return self.groups if kept is None else kept.groups, self.sharing.rope_length

    @property
    def chunk_limit(self) -> int:
        """Pending tokens that may run in one step, for which all must have the same groups."""
        if self.escalation is None or (kept := self.escalation.kept) is None:
            return self.pending
        return kept.length - self.computed if self.computed < kept.length else self.pending

    @property
    def escalated(self) -> bool:
        """True after the request escalated from its first mode."""
        return self.escalation is not None and self.escalation.confidence.fell

    @property
    def successors(self) -> list[Request]:
        """The requests that may replace it and answer from the beginning."""
        return [] if self.escalation is None else self.escalation.successors

    @property
    def watched(self) -> Confidence | PromptProbe | None:
        """The confidence or probe that may still change its mode; None: its mode is final."""
        state = self.escalation
        return state.confidence if state is not None and state.confidence.watching else None

    @property
    def doubt(self) -> Confidence | None:
        """The confidence that may still trigger an escalation."""
        if self.escalation is None:
            return None
        return watched if isinstance(watched := self.watched, Confidence) else None

    @property
    def probe(self) -> PromptProbe | None:
        """The prompt probe, until it has decided."""
        if self.escalation is None:
            return None
        return watched if isinstance(watched := self.watched, PromptProbe) else None

    @property
    def wants_logits(self) -> bool:
        """True where the request needs full logits, though its sampling parameters need only the argmax."""
        return self.scored or self.doubt is not None

    @property
    def scored(self) -> bool:
        """True where its acceptance rule needs `OneHot.probs`."""
        return isinstance(self.rule, LossyStepwise)

    @property
    def answer_probe(self) -> AnswerProbe | None:
        """The probe of its answer that runs beside the next token. None where none is due, or its rows do not fit."""
        if self.thinking is None or (probe := self.thinking.asks(self.tokens)) is None:
            return None
        begun = self.grammar is not None and self.grammar.begun(self.tokens)
        return None if begun or len(self.tokens) + probe.most > self.max_len else probe

    def rows_after(self, length: int) -> int:
        """Count the rows of a probe in a step that reads its text to this length."""
        probe = self.answer_probe if length == len(self.tokens) else None
        return 0 if probe is None else len(probe.rows)

    @property
    def pending(self) -> int:
        """Tokens whose KV is still to be computed: 1 while decoding, more while a prompt is read."""
        return len(self.tokens) - self.computed

    @property
    def done(self) -> bool:
        return self.stopper.reason is not None

    @property
    def wants_prompt_logprobs(self) -> bool:
        """True while rows of the prompt still have log-probabilities to give."""
        missing = len(self.log.prompt_logprobs) < self.prompt_length - 1
        return self.params.prompt_logprobs is not None and missing

    @property
    def made(self) -> int:
        """Tokens of its answer that this engine made, not counting those that its call brought."""
        return max(0, len(self.tokens) - self.prompt_length - len(self.known.answered))

    @property
    def later_tokens(self) -> int:
        """Tokens generated after the first one; of a resumed answer, counted from its last given token on."""
        read = max(0, len(self.known.answered) - 1)
        return max(0, len(self.tokens) - self.prompt_length - read - 1)

    @property
    def next_answered(self) -> int | None:
        """The next token, where the call brought it."""
        place = len(self.tokens) - self.prompt_length
        return self.known.answered[place] if place < len(self.known.answered) else None

    @property
    def wants_answered_logprobs(self) -> bool:
        """True while rows of what the call brought still have log-probabilities to give. Its last token comes
        from a step, as all later ones do."""
        missing = len(self.log.logprobs) < len(self.known.answered) - 1
        return self.params.logprobs is not None and missing

    def read_answered(self, tokens: Sequence[int]) -> int:
        """Continue after tokens of the answer that the call brought. All but the last one become text at once.

        Fewer do where the model's outputs decided what followed: where a probe asked for the answer, or an end
        token may have closed the thought. The rest follows later. Returns how many tokens became text.
        """
        size = len(tokens) - 1
        if self.thinking is not None:
            asked = self.thinking.asks_at(self.tokens, tokens[:size])
            asked = 0 if self.thinking.asks(self.tokens) is not None else asked
            begun = self.thinking.tags_begun(self.tokens, tokens)
            size = min([size, *begun, *([] if asked is None else [asked])])
        self.known.answered += tuple(tokens[: size + 1])
        self.known.unread = tokens[size + 1 :]
        kept = self.stopper.scan(tokens[:size])
        self.log.sources += [ANSWERED] * kept
        self.tokens += tokens[:kept]
        return kept

    def stop_thinking(self) -> bool:
        """Close its thought from the next step on. Call it in the engine's thread. False: there is none to close."""
        if self.done or self.thinking is None:
            return False
        if self.grammar is not None and self.grammar.begun(self.tokens):
            return False
        target = None if self.escalation is None else self.escalation.target
        if target is not None and target.thinking is not None:
            target.thinking.close(self.tokens)
        place = len(self.tokens) - self.prompt_length
        rest = [*self.known.answered[place:], *self.known.unread]  # which no step has read yet
        return self.thinking.close(self.tokens, unread=rest)

    def fail(self, error: Exception) -> None:
        """Record an error with which the running step ends this request alone. The first error counts."""
        if self.error is None:
            self.error = error
            if not isinstance(error, FloatingPointError | GrammarError):  # which the caller reads
                logger.opt(exception=error).error("request {} fails in a step", self.id)

    def survival(self, tree: Tree) -> Sequence[float] | None:
        """Return the chance of each drafted node by its policy; None: all nodes run. A certain token is as likely as
        its parent. Where the policy raises, only this request ends."""
        try:
            chances = self.drafting.policy.survival(tree)
            if chances is None or tree.drafter_ids is None or CERTAIN not in tree.drafter_ids:
                return chances
            chances = list(chances)
            for node, (parent, drafter) in enumerate(zip(tree.parents, tree.drafter_ids)):
                if drafter == CERTAIN:
                    chances[node] = 1.0 if parent < 0 else chances[parent]
            return chances
        except Exception as error:  # noqa: BLE001 - its own settings: the others run
            self.fail(error)
            return None

    def judge(self, tree: Tree, target_probs: TargetProbsAt, place: RngAt) -> Accepted:
        """Apply its acceptance rule. An error ends only this request."""
        try:
            return self.rule(tree, target_probs, place)
        except Exception as error:  # noqa: BLE001 - its own settings: the others run
            self.fail(error)
            return [], 0

    def record(self, tree: Tree, nodes: Sequence[int]) -> None:
        """Report accepted nodes to its policy. An error ends only this request."""
        try:
            self.drafting.policy.record(tree, nodes)
        except Exception as error:  # noqa: BLE001 - its own settings: the others run
            self.fail(error)
            self.stopper.finish("error")

    def end(self, reason: Reason, error: BaseException | None) -> None:
        """End it outside of a step, even where its text cannot be finished."""
        self.error = error or self.error
        try:
            if (token := self.next_answered) is not None and not self.done:  # no step said it yet
                kept = self.stopper.scan(rest := [token, *self.known.unread])
                self.tokens += rest[:kept]
                self.log.sources += [ANSWERED] * kept
            self.stopper.finish(reason)
        except BaseException as failed:  # noqa: BLE001 - its text cannot be ended, but it is over
            self.error = self.error or failed
            self.stopper.reason = self.stopper.reason or reason

    def notify(self) -> None:
        """Call the listener, and drop it when the request is over."""
        if self.listener is not None:
            self.listener(self)
            if self.done:
                self.listener = None
