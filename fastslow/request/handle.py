"""Handles that a caller holds while the engine answers: to wait for, to await, to iterate over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, NoReturn, Self

from fastslow.engine.core.step_trace import StepTrace
from fastslow.engine.params import shown
from fastslow.output import GenerationError, Output, Piece
from fastslow.request.group import GroupParts, RequestGroup, start
from fastslow.request.input_processor import InputProcessor
from fastslow.request.options import GenerateOptions, Prompt, as_wait, is_chat, spread


class _AnswerInTheMaking:
    """Base of a handle and a stream."""

    def __init__(self, group: RequestGroup) -> None:
        self._group = group

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an answer in the making cannot be pickled; wait for it and send its Output"
        )

    def trace(self, index: int = 0) -> dict[str, Any] | None:
        """Return what each step has done so far, where the call said `trace=True`; None without it, and before
        the engine has the request. `index`: which of n answers. ValueError: there is no such answer.

        It has `steps`, the first and the last 500, and how many were `left_out` between them. The guide
        says what a step has.
        """
        traces = self._group.traces
        if traces and index not in range(len(traces)):
            raise ValueError(f"index={shown(index)} is outside 0..{len(traces) - 1}")
        return traces[index].to_dict() if traces else None

    def stop_thinking(self) -> bool:
        """Have the thought that runs closed from the next step on, as a thinking budget does, so that the
        answer comes. It waits until the step that runs is over; in asyncio ask `AsyncLLM.stop_thinking`.
        False: there is no open thought, not yet or not any more.

        Raises:
            RuntimeError: the engine broke, or this is a forked process.
        """
        return self._group.stop_thinking().result()


class RequestHandle(_AnswerInTheMaking):
    """Handle of one prompt's answer, which the engine makes meanwhile; `LLM.submit` returns it.

    Any thread may use it, and any event loop:

    - `handle.result()` waits for the `Output`, and so does `await handle` in asyncio.
    - `for piece in handle` and `async for piece in handle` take the answer in pieces. The first one holds
      all that is there by then. Two loops over one handle share its pieces.
    - Leaving such a loop early, or being cancelled while awaiting, cancels the request. Dropping a handle
      does not: its request runs on.
    """

    @classmethod
    def of(cls, taker: str, prompt: Prompt, options: GenerateOptions, parts: GroupParts) -> Self:
        """Of a call that takes one prompt, checked at a glance; `taker`: its name, for messages."""
        return cls(RequestGroup(single_prompt(taker, prompt, parts.builder.inputs), options, parts))

    def start(self, over: Callable[[], None] = lambda: None) -> Self:
        """Have it tokenised and answered; `over` is called once it is done, see `RequestGroup.when_done`."""
        self._group.submit()
        self._group.when_done(over)
        return self

    @property
    def done(self) -> bool:
        """True where the answer is complete, was cancelled, or failed; `result` then does not wait."""
        return self._group.done

    def result(self, timeout: float | None = None) -> Output:
        """Wait for the answer.

        timeout: most seconds to wait; None = as long as it takes.

        Raises:
            TimeoutError: the wait is over. The request still runs.
            ValueError: the prompt, its chat template, the drafter or the timeout does not fit.
            GenerationError: the engine failed on the request; it holds the output.
            RuntimeError: the LLM was closed before the engine had the request.
        """
        if not self._group.wait(as_wait(timeout)):
            raise TimeoutError(f"no answer within {timeout} s; the request still runs")
        return self._group.outcome()

    def cancel(self) -> None:
        """End the request, unless it is over. `result` then gives the answer so far, with finish_reason
        "cancelled", once the step that runs is over."""
        self._group.cancel()

    @property
    def step_traces(self) -> Sequence[StepTrace]:
        """The same for all n answers, to be kept longer than the handle."""
        return tuple(self._group.traces)

    def __await__(self) -> Generator[Any, None, Output]:
        return self._awaited().__await__()

    def __iter__(self) -> PieceStream:
        return PieceStream(self._group)

    def __aiter__(self) -> PieceStream:
        return PieceStream(self._group)

    async def _awaited(self) -> Output:
        await self._group.arrival(lambda: self._group.done)
        return self._group.outcome()


class PieceStream(_AnswerInTheMaking, Iterator[Piece], AsyncIterator[Piece]):
    """The pieces of an answer as they are made, for `for` and for `async for`. The last one carries the
    `output`. With n above 1 pieces of all answers mix; `Piece.index` tells them apart.

    The first `next` starts the request, unless `submit` did. Leaving the stream ends it: `close`, or
    letting go of it. Any thread may close it while another one iterates, and that loop then ends.
    """

    def __init__(self, group: RequestGroup) -> None:
        super().__init__(group)
        self._left = self._begun = False
        group.stream()

    def close(self) -> None:
        """End the request, unless it is over. No more pieces come."""
        self._left = True
        self._group.cancel()

    async def aclose(self) -> None:
        """`close`, as asynchronous generators have it."""
        self.close()

    @property
    def output(self) -> Output | None:
        """The answer: whole, or as far as it was made when the stream was closed; None before that. Just
        after `close` it waits until the step that runs is over, and raises what `RequestHandle.result` does."""
        if not self._left and not self._group.done:
            return None
        return RequestHandle(self._group).result()

    def __next__(self) -> Piece:
        """Wait for the next piece; it raises what `RequestHandle.result` does."""
        self._begin()
        piece = self._group.next(self._ready)
        if piece is None or self._left:
            raise StopIteration
        return piece

    async def __anext__(self) -> Piece:
        self._begin()
        piece = await self._group.next_in_loop(self._ready)
        if piece is None or self._left:
            raise StopAsyncIteration
        return piece

    def __del__(self) -> None:
        self.close()

    def _begin(self) -> None:
        if not self._begun and not self._left:
            self._begun = True
            start([self._group])

    def _ready(self) -> bool:
        return self._left or self._group.arrived()


def single_prompt(taker: str, prompt: Prompt, inputs: InputProcessor) -> Prompt:
    """The prompt of a call that takes one; `taker`: its name, for messages."""
    (one, *_), single = inputs.split(prompt)
    if not single:
        raise ValueError(f"{taker} takes one prompt; give a list to generate")
    return one


def groups_of(
    prompts: object, options: dict[str, Any], parts: GroupParts
) -> tuple[list[RequestGroup], bool]:
    """The groups of a call that takes several prompts, and whether it was given a single one.

    options: fields of `GenerateOptions`: one value for all prompts, or a list with one for each.
    """
    batch, single = parts.builder.inputs.split(prompts)
    if single and "prediction" in options:  # which may be token ids
        options["prediction"] = [options["prediction"]]
    if is_chat(options.get("tools")):  # one list for all prompts
        options["tools"] = [options["tools"]] * len(batch)
    each = [spread(name, value, len(batch)) for name, value in options.items()]
    fields = [dict(zip(options, one)) for one in zip(*each)] or [{}] * len(batch)
    made = [GenerateOptions(**one) for one in fields]
    return [RequestGroup(prompt, one, parts) for prompt, one in zip(batch, made)], single


def answer_all(
    groups: Sequence[RequestGroup],
    watch: Callable[[Iterable[RequestHandle]], Iterable[object]] = iter,
) -> list[Output]:
    """Run groups as one batch, and wait; `watch` goes through the handles, which come as they are done.

    Raises:
        ValueError: the first thing that does not fit; nothing has run then.
        GenerationError: the engine failed on a request; it holds all outputs.
    """
    for group in groups:
        group.prepare()
    try:
        start(groups)
        for _ in watch(as_completed(map(RequestHandle, groups))):
            pass
        outputs = [group.finished() for group in groups]
    except BaseException:  # Ctrl-C too: no caller waits for the answers now
        for group in groups:
            group.cancel()
        raise
    errors = [c.error for output in outputs for c in output.choices if c.error is not None]
    if errors:
        raise GenerationError(f"{len(errors)} request(s) failed: {errors[0]}", outputs)
    return outputs


def as_completed(
    handles: Iterable[RequestHandle], timeout: float | None = None
) -> Iterator[RequestHandle]:
    """The handles, each as soon as it is done, as `concurrent.futures.as_completed` does.

    Args:
        handles: of `LLM.submit`, of one LLM or several. One that is given twice comes once.
        timeout: most seconds to wait, from the first `next`; None = as long as it takes.

    Raises:
        TimeoutError: the wait is over. The requests still run.
        ValueError: one is no handle, or the timeout is no number of seconds.
        RuntimeError: a request runs in another process, from which this one was forked.
    """
    wait = as_wait(timeout)
    end = None if wait is None else monotonic() + wait
    each = list(dict.fromkeys(handles))
    for handle in each:
        if not isinstance(handle, RequestHandle):
            raise ValueError(f"handles holds {shown(handle)}, which is no RequestHandle")
    over: SimpleQueue[RequestHandle] = SimpleQueue()
    for handle in each:
        handle._group.when_done(partial(over.put, handle))
    for left in range(len(each), 0, -1):
        try:
            yield over.get(timeout=None if end is None else max(0.0, end - monotonic()))
        except Empty:
            late = f"{left} of {len(each)} answers are not there within {timeout} s"
            raise TimeoutError(f"{late}; the requests still run") from None
