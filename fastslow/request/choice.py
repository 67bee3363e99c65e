"""The state of one of the answers to a prompt: its pieces as they come, and the whole at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal

from loguru import logger

from fastslow.draft.registry import AUTO, DRAFTERS, split_names
from fastslow.engine.core.request import Request
from fastslow.engine.core.spec_decode_stats import DraftCounts
from fastslow.engine.model.routed_units import RoutedUnits
from fastslow.engine.params import Mode
from fastslow.engine.sampling.thinking_limits import Ended
from fastslow.engine.text.thought import HARMONY, ThoughtSplitter, ThoughtTags, splitter
from fastslow.engine.types import PREDICTION
from fastslow.output import Completion, Decided, Metrics, Output, Piece, ToolCall
from fastslow.request.builder import CallContext
from fastslow.request.input_processor import InputProcessor
from fastslow.tool_calls.answer_parts import AnswerParts, Change

ENOUGH = 100  # drafted tokens, before advice is given
POOR = 0.02  # of them accepted


class ChoiceState:
    """State of one answer. The engine's thread makes pieces; once it is over, only the caller's thread reads it.

    The text between the tags is `reasoning`, all else `text`. A thought without an end is reasoning.
    Where the first tag is the closing one, and the request may think, the answer began inside a
    thought: the text before it is reasoning, too. A request that must not think keeps it as `text`, so
    that its answer is not lost.

    A second request replaces the first where its confidence falls. Nothing of the first is streamed while
    it may still be replaced.

    call: what it shares with the prompt's other answers. index: which of them this is.
    """

    def __init__(
        self,
        requests: list[Request],
        tags: ThoughtTags | None,
        units: RoutedUnits,
        call: CallContext,
        index: int = 0,
    ) -> None:
        self._tags = tags
        self._units = units
        self._decided, self._tools, self._turn = call.decided, call.tools, call.turn
        self._called, self._around = call.called, call.around
        self._index = index
        self._ended = False  # its last piece was made
        self.streaming = False  # a piece is made in every step; the first one holds all so far
        self.pieces: deque[Piece] = deque()  # several answers may share one queue
        self.over = False
        self.news: Callable[[], None] = lambda: None  # called in the engine's thread
        self.requests = self._candidates = requests
        for request in self.requests:
            request.listener = self._on_step
        self._begin()

    @property
    def request(self) -> Request:
        """The request that answers."""
        return self._candidates[0]

    def abandon(self) -> None:
        self.request.end("cancelled", None)
        self._note_turn()
        self.over = True

    def end_pieces(self) -> None:
        """Make a piece of what no other one held of an answer that is over; later calls do nothing."""
        if self._ended:
            return
        self._ended = True
        with suppress(Exception):  # of a text that cannot be split: `completion` says so
            reasoning, text = self._splitter.push(self.request.stopper.news())
            last_reasoning, last_text = self._splitter.finish()
            piece = self._piece(text + last_text, reasoning + last_reasoning)
            if self._tools is not None:
                piece = _with_calls(piece, self._parts.push(piece) + self._parts.end())
            if piece.text or piece.reasoning or piece.token_ids or piece.tool_calls:
                self.pieces.append(piece)

    def completion(self) -> Completion:
        """The whole answer of a request that is over."""
        request = self.request
        stopper = request.stopper
        whole = self._new_splitter(self.request.prompt.opened or self._strayed)
        parts = [whole.push(stopper.text), whole.finish()]
        answer = Completion(
            text="".join(text for _, text in parts),
            reasoning="".join(reasoning for reasoning, _ in parts),
            token_ids=request.tokens[request.prompt_length :],
            finish_reason=stopper.reason or "error",
            stop_reason=stopper.matched,
            logprobs=None if request.params.logprobs is None else request.log.logprobs,
            metrics=self._metrics(),
            error=None if request.error is None else str(request.error) or repr(request.error),
            sources=list(request.log.sources),
        )
        if self._tools is None:
            return answer
        read = AnswerParts(self._tools.parser(), True)
        read.finish(answer)
        for part, streamed in zip(read.calls, self._parts.calls):
            part.id = streamed.id
        calls = [ToolCall(part.name, part.text, part.id) for part in read.calls]
        return replace(answer, text=read.text_of("text"), tool_calls=calls)

    @property
    def _strayed(self) -> bool:
        """True where the whole answer turned out to begin inside a thought."""
        may_think = self._answers_in.thinking != "off" and not self.request.prompt.opened
        held = self.request.grammar is not None  # where its answer begins is known
        strayed = self._tags is not None and self._tags.strayed(self.request.stopper.text)
        return may_think and not held and strayed

    @property
    def _answers_in(self) -> Mode:
        """The mode that answers, the latest where the text went on in another one."""
        target = None if self.request.escalation is None else self.request.escalation.target
        goes_on = self.request.escalated and target is not None and target.successor is None
        return target.mode if goes_on and target is not None else self.request.mode

    def _begin(self) -> None:
        self._splitter = self._new_splitter(self.request.prompt.opened)
        self._sent = self.request.prompt_length
        self._parts = AnswerParts(None if self._tools is None else self._tools.parser(), True)

    def _new_splitter(self, opened: bool) -> ThoughtSplitter:
        grammar, spec = self.request.grammar, self.request.params.grammar
        begun = grammar is not None and grammar.at_once
        calls = self.request.prompt.tools
        # in channels such a grammar in Lark holds messages with their headers, see `Grammars.grammar`
        messages = self._tags == HARMONY and calls and spec is not None and spec.kind == "lark"
        once = grammar is not None and not messages
        return splitter(self._tags, opened, calls, once, once and begun, self._around)

    def _on_step(self, request: Request) -> None:
        if request is not self.request:
            return
        if request.done and request.escalated and len(self._candidates) > 1:
            self._candidates = request.successors
            self._begin()
            if not self.request.done:
                return
            request = self.request
        if request.done:
            self._note_turn()
            if self.streaming:
                self.end_pieces()
            self.over = True
            self.news()
            return
        unsure = len(self._candidates) > 1 and request.watched
        # what its call brought may be read in several steps, and comes as one piece
        if self.streaming and not unsure and request.next_answered is None:
            reasoning, text = self._splitter.push(request.stopper.news())
            piece = self._piece(text, reasoning)
            if self._tools is not None:
                piece = _with_calls(piece, self._parts.push(piece))
            if piece.token_ids:
                self.pieces.append(piece)
                self.news()

    def _note_turn(self) -> None:
        """The thoughts of an answer that is over count for the turn that its call names."""
        if self._turn is not None:
            self._turn.note(self._thought()[0])

    def _piece(self, text: str, reasoning: str) -> Piece:
        """The next piece, with the tokens that no other one held."""
        request, first = self.request, self._sent
        decided = self._decisions() if first == request.prompt_length else None
        self._sent = len(request.tokens)
        logprobs = None
        if request.params.logprobs is not None:
            logprobs = request.log.logprobs[first - request.prompt_length :]
        tokens = request.tokens[first:]
        sources = request.log.sources[first - request.prompt_length :]
        stopped = None if request.thinking is None else request.thinking.stopped
        return Piece(
            text, reasoning, tokens, None, logprobs, self._index, sources, decided, stopped
        )

    def _decisions(self) -> Decided | None:
        """For another engine that continues the answer."""
        request = self.request
        scheduling = request.scheduling
        by_load = scheduling.latency_target is not None and scheduling.may_cut_groups
        left = None if self._turn is None else request.prompt.turn_left(self._answers_in)
        if self._decided is None and not by_load and left is None:
            return None
        mode = why = ""
        if self._decided is not None:
            mode = request.mode.name
            why = self._decided.why or "; ".join(self.requests[0].log.notes)
        return Decided(mode, why, request.groups, left)

    def _mode(self) -> str:
        """The mode that answered; both, where a text went on in another one."""
        name, state = self.request.mode.name, self.request.escalation
        other = None if state is None else state.target
        return f"{name}>{other.mode.name}" if other is not None and self.request.escalated else name

    def _metrics(self) -> Metrics:
        request = self.request
        stats, timing = request.spec_stats, request.timing
        tokens = len(request.tokens) - request.prompt_length
        pairs = zip(stats.accepted_at, stats.offered_at)
        first = self.requests[0]
        state = first.escalation
        ttft = max(0.0, timing.first_token - self._called)
        tpot = (timing.last_token - timing.first_token) / max(1, request.later_tokens)
        target = first.scheduling.latency_target
        notes = (note for one in self.requests for note in one.log.notes)
        thought, ended, put_in = self._thought()
        left = request.prompt.turn_left(self._answers_in)
        predicted = stats.by_drafter.get(PREDICTION, DraftCounts())
        return Metrics(
            mode=self._mode(),
            drafter=request.speculation.drafter,
            ttft=ttft,
            tpot=tpot,
            decision="; ".join(filter(None, (self._decided and self._decided.why, *notes))),
            escalated_at=state.confidence.tokens if state and state.confidence.fell else None,
            target_ms=None if target is None else 1000 * target,
            target_kept=None if target is None else bool(tokens) and max(ttft, tpot) <= target,
            tokens=tokens,
            answered_tokens=len(request.known.answered),
            steps=stats.steps,
            drafted=stats.drafted,
            accepted=stats.accepted,
            cut=stats.cut,
            draft_seconds=stats.draft_seconds,
            verify_seconds=stats.verify_seconds,
            preemptions=stats.preemptions,
            runs=list(stats.runs),
            acceptance=[accepted / offered for accepted, offered in pairs],
            cached_tokens=stats.cached,
            thinking_tokens=thought,
            thinking_ended=ended,
            put_in_tokens=put_in,
            probe_rows=stats.probe_rows,
            turn_budget_left=None if left is None else max(0, left - thought),
            prompt_tokens=request.prompt_length,
            run_seconds=max(0.0, timing.last_token - timing.began),
            queue_seconds=max(0.0, timing.began - self._called),
            prediction_accepted=predicted.accepted,
            prediction_rejected=predicted.drafted - predicted.accepted,
            by_drafter=stats.by_drafter,
            **self._units.running(request.groups),
        )

    def _thought(self) -> tuple[int, Ended | Literal["length"] | None, int]:
        """Tokens of thought, what ended it, and how many were put in."""
        thinking = self.request.thinking
        if thinking is None:
            return 0, None, 0
        tokens: Sequence[int] = self.request.tokens
        if self.request.grammar is not None:  # an answer may spell a tag
            tokens = self.request.grammar.thought(tokens)
        count, ended, still_open, put_in = thinking.outcome(tokens, self._strayed)
        if not still_open:
            return count, ended, put_in
        return count, "length" if self.request.stopper.reason == "length" else None, put_in


def _with_calls(piece: Piece, found: Sequence[Change]) -> Piece:
    """A piece whose text is what is said besides the calls that were found in it."""
    calls = [
        ToolCall(part.name, text, part.id)
        for verb, part, text in found
        if part.kind == "call" and verb != "ended"
    ]
    said = "".join([text for _, part, text in found if part.kind == "text"])
    return replace(piece, text=said, tool_calls=calls)


def advice(metrics: Metrics) -> str | None:
    """Return a sentence with the likely cause where acceptance stays near zero; else None."""
    if metrics.drafted < ENOUGH or metrics.accepted >= POOR * metrics.drafted:
        return None
    names = split_names(metrics.drafter.replace("auto", AUTO))
    causes = "; or ".join(DRAFTERS[name].likely_cause for name in names if name in DRAFTERS)
    return (
        f"drafter {metrics.drafter}: {metrics.accepted} of {metrics.drafted} drafted tokens were "
        f"accepted. Probably {causes}. Try `fastslow tune` on your prompts, or speculation='off'"
    )


class OutputBuilder:
    """Makes the output of a prompt whose choices are over, and says what its callers may want to know, once."""

    def __init__(self, inputs: InputProcessor) -> None:
        self._inputs = inputs
        self._advised: set[str] = set()  # drafters

    def __call__(self, each: Sequence[ChoiceState]) -> Output:
        first, prompt = each[0].request, each[0].request.prompt
        prompt_logprobs = None
        if first.params.prompt_logprobs is not None:
            prompt_logprobs = [None, *first.log.prompt_logprobs]
        answers = [choice.completion() for choice in each]
        for answer in answers:
            hint = advice(answer.metrics)
            if hint is not None and answer.metrics.drafter not in self._advised:
                self._advised.add(answer.metrics.drafter)
                logger.warning(hint)
        if (hint := self._inputs.advice(prompt, answers[0])) is not None:
            self._inputs.said.warn(hint)
        return Output(prompt.text, list(prompt.tokens), answers, prompt_logprobs)
