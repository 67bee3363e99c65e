"""Calls of an `LLM` become jobs, and those that are submitted start in a thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import Any

from fastslow.call import (
    BatchOptions,
    HandleOptions,
    ListOf,
    Prompt,
    PromptCall,
    Sampling,
    Samplings,
    refuse_unknown,
    spread,
)
from fastslow.choice import ChoiceHandle
from fastslow.engine.core.worker import Worker
from fastslow.handle import RequestHandle
from fastslow.job import PromptJob
from fastslow.output import Output
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
        self, prompts: Prompt | ListOf[Prompt], sampling: Samplings, options: dict[str, Any]
    ) -> tuple[list[PromptJob], bool]:
        """The jobs of a call that takes several prompts, and whether it was given a single one.

        Raises:
            ValueError: one sentence about the first thing that does not fit.
        """
        called = monotonic()
        refuse_unknown(options, BatchOptions.__annotations__)
        batch, single = self._requests.inputs.split(prompts)
        options["sampling"] = sampling
        if single and "prediction" in options:  # which may be token ids
            options["prediction"] = [options["prediction"]]
        each = [spread(name, value, len(batch)) for name, value in options.items()]
        asked = [dict(zip(options, one)) for one in zip(*each)]
        calls = (PromptCall(called, prompt, **one) for prompt, one in zip(batch, asked))
        return [self.of(call) for call in calls], single

    def one(
        self, taker: str, prompt: Prompt, sampling: Sampling, options: HandleOptions
    ) -> PromptJob:
        """The job of a call that takes one prompt; `taker`: its name, for messages."""
        return self.of(self.call(taker, prompt, sampling, options))

    def call(
        self, taker: str, prompt: Prompt, sampling: Sampling, options: HandleOptions
    ) -> PromptCall:
        """The same, not checked yet."""
        refuse_unknown(options, HandleOptions.__annotations__)
        (asked, *_), single = self._requests.inputs.split(prompt)
        if not single:
            raise ValueError(f"{taker} takes one prompt; give a list to generate")
        return PromptCall(monotonic(), asked, sampling, **options)

    def of(self, call: PromptCall) -> PromptJob:
        """The job of a call, which is checked at a glance."""
        count = self._requests.check(call)
        build = partial(self._requests.build, call)
        return PromptJob(build, self._output, self._worker, self._wakeups, count)

    def start(self, job: PromptJob) -> RequestHandle:
        """Tokenise a job's prompt in a thread, and give it to the engine."""
        self._tokenising.submit(job.run)
        return RequestHandle(job)

    def close(self) -> None:
        """Take no more; what was started goes on."""
        self._tokenising.shutdown(wait=False)
