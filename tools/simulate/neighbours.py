"""Other engines that compute on the same machine meanwhile, each a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

import numpy as np

from fastslow.engine.params import SamplingParams
from fastslow.llm import LLM

START = 600.0  # seconds that a model has to load
REQUESTS, PROMPT, ANSWER = 2, 64, 16  # of each of their calls; tokens


class Neighbours:
    """Engines that answer without end, each from its start to the end of the `with` block.

    Args:
        model: a folder or a built-in name.
        options: of `LLM`; all values can be pickled.
        mode: they answer in.
    """

    def __init__(self, model: str, options: Mapping[str, Any], mode: str) -> None:
        self._made = model, dict(options), mode
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[BaseProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def start_one(self) -> None:
        """One more of them, which answers when this returns.

        Raises:
            RuntimeError: it did not load the model.
        """
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_answer, args=(*self._made, theirs), daemon=True)
        process.start()
        theirs.close()
        self._processes.append(process)
        try:
            loaded = ours.poll(START) and ours.recv()
        except EOFError:
            loaded = False
        if not loaded:
            raise RuntimeError("an engine that is to run beside this one did not load the model")


def _answer(model: str, options: dict[str, Any], mode: str, told: Connection) -> None:
    """What the process does, until it is killed."""
    with LLM(model, **options) as llm:
        draw = np.random.default_rng()
        sampling = SamplingParams(max_tokens=ANSWER, temperature=0, ignore_eos=True)
        size = llm.model.config.vocab_size
        while True:
            prompts = draw.integers(0, size, (REQUESTS, PROMPT)).tolist()
            llm.generate(prompts, sampling, mode=mode, speculation="off", allow_special=True)
            if not told.closed:
                told.send(True)
                told.close()
