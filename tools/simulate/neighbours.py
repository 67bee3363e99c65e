"""Other engines that compute on the same machine meanwhile, each a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from fastslow.engine.host.machine import free_memory
from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM

START = 600.0  # seconds that a model has to load
REST = 60.0  # seconds in which one comes to rest: it ends its answers first
REQUESTS, PROMPT, ANSWER = 2, 64, 16  # of each of their calls; tokens


def check_memory(count: int) -> None:
    """ValueError: so many processes like this one, which has loaded its model, do not fit into the memory."""
    need, free = (
        count * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        free_memory("cpu"),
    )
    if need > free:
        raise ValueError(
            f"beside={count}: so many engines need some {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
        )


class Neighbours:
    """Engines that answer without end while they are asked to, from their start to the end of the `with` block. Each
    runs on as many threads as this process.

    Args:
        model: a folder or a built-in name.
        options: of `LLM`; all values can be pickled.
        mode: they answer in.
    """

    def __init__(self, model: str, options: Mapping[str, Any], mode: str) -> None:
        self._made = model, dict(options), mode, torch.get_num_threads()
        self._context = multiprocessing.get_context("spawn")
        self._all: list[_Neighbour] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one in self._all:
            one.process.kill()
        for one in self._all:
            one.process.join()
            one.pipe.close()

    def start_one(self) -> None:
        """One more of them, which answers when this returns.

        Raises:
            RuntimeError: it did not load the model.
        """
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_answer, args=(*self._made, theirs), daemon=True)
        process.start()
        theirs.close()
        self._all.append(_Neighbour(process, ours))
        if not self._all[-1].told(START):
            raise RuntimeError("an engine that is to run beside this one did not load the model")

    def run_only(self, count: int) -> None:
        """So many of them answer from now on, the others rest.

        Raises:
            RuntimeError: one has ended, or hangs.
        """
        for place, one in enumerate(self._all):
            with suppress(OSError):  # it has ended, which `told` tells
                one.pipe.send(place < count)
        for one in self._all:
            if not one.told(REST):
                raise RuntimeError("an engine that runs beside this one has ended, or hangs")


@dataclass(frozen=True, slots=True)
class _Neighbour:
    process: BaseProcess
    pipe: Connection

    def told(self, seconds: float) -> bool:
        """Whether it says within so many seconds that it does what it is asked; not if it has ended."""
        try:
            return self.pipe.poll(seconds) and bool(self.pipe.recv())
        except (EOFError, OSError):
            return False


def _answer(model: str, options: dict[str, Any], mode: str, threads: int, pipe: Connection) -> None:
    """What the process does, until it is killed, or who started it has ended without doing so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started it
    torch.set_num_threads(threads)
    with LLM(model, **options) as llm, suppress(EOFError, OSError):
        draw = np.random.default_rng()
        sampling = SamplingParams(max_tokens=ANSWER, temperature=0, ignore_eos=True)
        size, prompt = llm.model.config.vocab_size, min(PROMPT, llm.max_model_len - ANSWER)
        answers, first = True, True
        while True:
            if pipe.poll(0.0 if answers else None):
                answers = pipe.recv()
                pipe.send(True)
            if not answers:
                continue
            prompts = draw.integers(0, size, (REQUESTS, prompt)).tolist()
            llm.generate(prompts, sampling, mode=mode, speculation="off", allow_special=True)
            if first:
                pipe.send(True)
                first = False
