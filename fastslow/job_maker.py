"""Calls of an `LLM` become jobs, and those that are submitted start in a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import Any

from fastslow.choice import ChoiceHandle
from fastslow.engine.core.worker import Worker
from fastslow.handle import RequestHandle
from fastslow.job import PromptJob
from fastslow.output import Output
from fastslow.request.options import GenerateOptions, ListOf, Prompt, spread
from fastslow.request_builder import RequestBuilder
from fastslow.wakeups import LoopWakeups

TOKENISERS = 2  # threads that tokenise what is submitted


class JobMaker:
    """Makes the jobs of one LLM.

    Args:
        requests: checks calls and builds their requests.
        output: makes the output of choices that are over.
        worker: runs the requests.
        wakeups: wakes event loops that wait for them.
    """

    def __init__(
        self,
        requests: RequestBuilder,
        output: Callable[[Sequence[ChoiceHandle]], Output],
        worker: Worker,
        wakeups: LoopWakeups,
    ) -> None:
        self._requests = requests
        self._output = output
        self._worker = worker
        self._wakeups = wakeups
        self._tokenising = ThreadPoolExecutor(TOKENISERS, "fastslow-tokenise")

    def each(
        self, prompts: Prompt | ListOf[Prompt], options: dict[str, Any]
    ) -> tuple[list[PromptJob], bool]:
        """The jobs of a call that takes several prompts, and whether it was given a single one.

        Raises:
            ValueError: one sentence about the first thing that does not fit.
        """
        called = monotonic()
        batch, single = self._requests.inputs.split(prompts)
        if single and "prediction" in options:  # which may be token ids
            options["prediction"] = [options["prediction"]]
        each = [spread(name, value, len(batch)) for name, value in options.items()]
        fields = [dict(zip(options, one)) for one in zip(*each)] or [{}] * len(batch)
        asked = [GenerateOptions(**one) for one in fields]
        return [self.of(prompt, one, called) for prompt, one in zip(batch, asked)], single

    def one(self, taker: str, prompt: Prompt, options: GenerateOptions) -> PromptJob:
        """The job of a call that takes one prompt; `taker`: its name, for messages."""
        called = monotonic()
        return self.of(self.single(taker, prompt), options, called)

    def tokens(self, taker: str, prompt: Prompt, options: GenerateOptions) -> list[int]:
        """The token ids that a call would read."""
        asked = self.single(taker, prompt)
        self._requests.check(asked, options)
        return self._requests.encoded(asked, options).tokens

    def single(self, taker: str, prompt: Prompt) -> Prompt:
        (asked, *_), single = self._requests.inputs.split(prompt)
        if not single:
            raise ValueError(f"{taker} takes one prompt; give a list to generate")
        return asked

    def of(self, prompt: Prompt, options: GenerateOptions, called: float) -> PromptJob:
        """The job of a call, which is checked at a glance."""
        count = self._requests.check(prompt, options)
        build = partial(self._requests.build, prompt, options, called)
        return PromptJob(build, self._output, self._worker, self._wakeups, count)

    def start(self, job: PromptJob) -> RequestHandle:
        """Tokenise a job's prompt in a thread, and give it to the engine."""
        self._tokenising.submit(job.run)
        return RequestHandle(job)

    def close(self) -> None:
        """Take no more; what was started goes on."""
        self._tokenising.shutdown(wait=False)
