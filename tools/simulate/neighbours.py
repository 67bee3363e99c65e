"""Other engines that compute on the same machine meanwhile, each a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from fastslow.engine.host.machine import free_memory
from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM

START = 600.0  # seconds that a model has to load
REST = 60.0  # seconds in which one comes to rest: it ends its answers first
LOOK = 1.0  # seconds between two looks of one that rests whether who started it is still there
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

    def start_one(self) -> None:
        """One more of them, which answers when this returns.

        Raises:
            RuntimeError: it did not load the model.
        """
        ours, theirs = self._context.Pipe()
        asked, rests = self._context.Event(), self._context.Event()
        asked.set()
        process = self._context.Process(
            target=_answer, args=(*self._made, theirs, asked, rests), daemon=True
        )
        process.start()
        theirs.close()
        self._all.append(_Neighbour(process, asked, rests))
        try:
            loaded = ours.poll(START) and ours.recv()
        except EOFError:
            loaded = False
        finally:
            ours.close()
        if not loaded:
            raise RuntimeError("an engine that is to run beside this one did not load the model")

    def run_only(self, count: int) -> None:
        """So many of them answer from now on, the others rest.

        Raises:
            RuntimeError: one does not come to rest.
        """
        for one in self._all[:count]:
            one.asked.set()
        for one in self._all[count:]:
            one.asked.clear()
        for one in self._all[count:]:
            if not one.rests.wait(REST):
                raise RuntimeError("an engine that runs beside this one does not come to rest")


@dataclass(frozen=True, slots=True)
class _Neighbour:
    process: BaseProcess
    asked: Event  # it is to answer
    rests: Event  # it does not


def _answer(
    model: str,
    options: dict[str, Any],
    mode: str,
    threads: int,
    told: Connection,
    asked: Event,
    rests: Event,
) -> None:
    """What the process does, until it is killed, or who started it has ended without doing so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started it
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    with LLM(model, **options) as llm:
        draw = np.random.default_rng()
        sampling = SamplingParams(max_tokens=ANSWER, temperature=0, ignore_eos=True)
        size, prompt = llm.model.config.vocab_size, min(PROMPT, llm.max_model_len - ANSWER)
        while parent is None or parent.is_alive():
            if not asked.is_set():
                rests.set()
                asked.wait(LOOK)
                continue
            rests.clear()
            prompts = draw.integers(0, size, (REQUESTS, prompt)).tolist()
            llm.generate(prompts, sampling, mode=mode, speculation="off", allow_special=True)
            if not told.closed:
                told.send(True)
                told.close()
