"""Other engines that compute on the same machine meanwhile, each in a separate process."""

from __future__ import annotations

import multiprocessing
import resource
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from fastslow.engine.host.machine import free_memory
from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM

START, REST = 600.0, 60.0  # seconds to load a model, and to end the answers that run
REQUESTS, PROMPT, ANSWER = 2, 64, 16  # of each of their calls; tokens


class Neighbours:
    """Engines that answer while they are asked to.

    Args:
        pipes: to their processes. Each says that it did what it was asked.
    """

    def __init__(self, pipes: list[Connection]) -> None:
        self._pipes = pipes

    def run_only(self, count: int) -> None:
        """The first `count` answer without end from now on, the others rest.

        Raises:
            RuntimeError: one has ended, or hangs.
        """
        for place, pipe in enumerate(self._pipes):
            with suppress(OSError):  # it has ended, which `_done` finds
                pipe.send(place < count)
        if not all(_done(pipe, REST) for pipe in self._pipes):
            raise RuntimeError("an engine that runs beside this one has ended, or hangs")


@contextmanager
def neighbours(
    count: int, model: str, options: Mapping[str, Any], mode: str
) -> Iterator[Neighbours]:
    """Engines that have loaded the model and rest. Each runs on as many threads as this process.

    Args:
        count: how many.
        model: a folder or a built-in name.
        options: of `LLM`; all values can be pickled.
        mode: they answer in.

    Raises:
        ValueError: they do not fit into the memory.
        RuntimeError: one did not load the model.
    """
    need = count * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # as this process has
    if need > (free := free_memory("cpu")):
        raise ValueError(
            f"beside={count}: the engines need some {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
        )
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            made = model, dict(options), mode, torch.get_num_threads(), theirs
            process = context.Process(target=_answer, args=made, daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
            if not _done(ours, START):
                raise RuntimeError(
                    "an engine that is to run beside this one did not load the model"
                )
        yield Neighbours(pipes)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _done(pipe: Connection, seconds: float) -> bool:
    """Whether a process says within some seconds that it did what it was asked; not if it has ended."""
    try:
        return pipe.poll(seconds) and bool(pipe.recv())
    except (EOFError, OSError):
        return False


def _answer(model: str, options: dict[str, Any], mode: str, threads: int, pipe: Connection) -> None:
    """What the process does, until it is killed, or its parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    torch.set_num_threads(threads)
    sampling = SamplingParams(max_tokens=ANSWER, temperature=0, ignore_eos=True)
    draw = np.random.default_rng()
    with LLM(model, **options) as llm, suppress(EOFError, OSError):
        size, prompt = llm.model.config.vocab_size, min(PROMPT, llm.max_model_len - ANSWER)

        def answer() -> None:
            prompts = draw.integers(0, size, (REQUESTS, prompt)).tolist()
            llm.generate(prompts, sampling, mode=mode, speculation="off", allow_special=True)

        answer()  # what is made on first use
        pipe.send(True)
        answers = False
        while True:
            if pipe.poll(0.0 if answers else None):
                answers = pipe.recv()
                pipe.send(True)
            if answers:
                answer()
