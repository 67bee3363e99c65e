"""What a caller holds of a running request: its pieces as they come, and the answer at the end."""

from __future__ import annotations

import time
from queue import SimpleQueue
from typing import Literal

from fastslow.engine.output import Completion, Metrics, Piece
from fastslow.engine.request import Request
from fastslow.engine.text.thought import ThoughtSplitter, ThoughtTags
from fastslow.engine.thinking import Ended, Thinking


class Handle:
    """One request, seen from the caller's thread.

    What stands between the tags is `reasoning`, all else `text`. A thought that the answer does not
    get to the end of is reasoning. Where the first tag is the closing one, and the request may think,
    the answer began inside a thought: what stands before it is reasoning, too. A request that was not
    to think keeps it as text, so that its answer is never lost to the other field.

    Args:
        request: not submitted yet; its listener is set here.
        mode: the mode's name, for the metrics.
        tags: the model's thinking tags, if it has any.
        opened: the prompt ends inside a thought.
        thinks: the mode lets it think.
        streaming: keep every piece; otherwise only the end is told.
    """

    def __init__(
        self,
        request: Request,
        mode: str,
        tags: ThoughtTags | None,
        opened: bool,
        thinks: bool = True,
        streaming: bool = False,
    ) -> None:
        self.request = request
        self._mode = mode
        self._tags = tags
        self._opened = opened
        self._thinks = thinks
        self._streaming = streaming
        self._splitter = ThoughtSplitter(tags, opened)
        self._sent = request.prompt_length
        self._over = False
        self._pieces: SimpleQueue[Piece | None] = SimpleQueue()
        self._started = time.monotonic()
        request.listener = self._hear

    def next(self) -> Piece | None:
        """Wait for news; None once the request is over, however often it is asked."""
        if self._over:
            return None
        piece = self._pieces.get()
        self._over = piece is None
        return piece

    def wait(self) -> Completion:
        """Wait until the request is over."""
        while self.next() is not None:
            pass
        return self.completion()

    def completion(self) -> Completion:
        """The whole answer of a request that is over."""
        request = self.request
        stopper = request.stopper
        opened, thinking = self._opened, request.thinking
        asked = self._tags is not None and self._thinks and not opened
        if asked and self._tags.strayed(stopper.text):  # type: ignore[union-attr]
            opened = True
            thinking = thinking and thinking.reopened()
        splitter = ThoughtSplitter(self._tags, opened)
        parts = [splitter.push(stopper.text), splitter.finish()]
        return Completion(
            text="".join(text for _, text in parts),
            reasoning="".join(reasoning for reasoning, _ in parts),
            token_ids=request.tokens[request.prompt_length :],
            finish_reason=stopper.reason or "error",
            stop_reason=stopper.matched,
            logprobs=None if request.params.logprobs is None else request.logprobs,
            metrics=self._metrics(thinking),
            error=None if request.error is None else str(request.error),
        )

    def _hear(self, request: Request) -> None:
        """In the engine's thread, after each step of the request."""
        if self._streaming:
            reasoning, text = self._splitter.push(request.stopper.news())
            if request.done:
                last_reasoning, last_text = self._splitter.finish()
                reasoning, text = reasoning + last_reasoning, text + last_text
            fresh, self._sent = request.tokens[self._sent :], len(request.tokens)
            self._pieces.put(Piece(text, reasoning, fresh))
        if request.done:
            self._pieces.put(None)

    def _metrics(self, thinking: Thinking | None) -> Metrics:
        request = self.request
        tally = request.tally
        tokens = len(request.tokens) - request.prompt_length
        pairs = zip(tally.accepted_at, tally.offered_at)
        thought, ended = self._thought(thinking)
        return Metrics(
            mode=self._mode,
            drafter=request.speculation.drafter,
            ttft=max(0.0, tally.first_token - self._started),
            tpot=(tally.last_token - tally.first_token) / max(1, tokens - 1),
            tokens=tokens,
            steps=tally.steps,
            drafted=tally.drafted,
            accepted=tally.accepted,
            cut=tally.cut,
            runs=list(tally.runs),
            draft_seconds=tally.draft_seconds,
            verify_seconds=tally.verify_seconds,
            acceptance=[accepted / offered for accepted, offered in pairs],
            cached_tokens=tally.cached,
            preemptions=tally.preemptions,
            thinking_tokens=thought,
            thinking_ended=ended,
        )

    def _thought(self, thinking: Thinking | None) -> tuple[int, Ended | Literal["length"] | None]:
        """Tokens of thought, and what ended it."""
        if thinking is None:
            return 0, None
        count, ended, still_open = thinking.outcome(self.request.tokens)
        if not still_open:
            return count, ended
        return count, "length" if self.request.stopper.reason == "length" else None
