"""Which model a server runs, and how: plain JSON values, which also go to another process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastslow.serve.api.engine import WarmPrefix

if TYPE_CHECKING:
    from fastslow.serve.engines.local import LocalEngine


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """A model and its options.

    Attributes:
        model: as `LLM` takes it.
        name: what clients call it.
        options: keyword arguments of `LLM`.
        max_waiting: most answers that wait, as `AsyncLLM` takes it.
        warm: what prompts begin with, read before the first request: see `WarmPrefix`.
        threads: of the processor, for an engine that has a process to itself; None = all that are left.
    """

    model: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    max_waiting: int = 256
    warm: Sequence[WarmPrefix] = ()
    threads: int | None = None

    async def open(self) -> LocalEngine:
        """Load the model, in a thread, and measure its steps: no request has to wait for that.

        Raises:
            ValueError: one sentence about what does not fit.
            RuntimeError: a rank failed.
        """
        # with torch, which only the process that runs the model needs
        import torch

        from fastslow.llm import LLM
        from fastslow.serve.engines.local import LocalEngine

        if self.threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)
            torch.set_num_threads(self.threads)
        llm = await asyncio.to_thread(LLM, self.model, **self.options)
        engine = LocalEngine(llm, self.name, self.max_waiting)
        try:
            await asyncio.to_thread(llm.measure_steps)
            for prefix in self.warm:
                await engine.warm(prefix)
        except BaseException:
            await engine.close()
            raise
        return engine
