"""Settings of the model that a server runs, and how: plain JSON values, which also go to another process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from fastslow.serve.api.config import ServerConfig
from fastslow.serve.api.engine import WarmPrefix

if TYPE_CHECKING:
    from fastslow.serve.engines.local import LocalEngine


# what makes a process see some devices only; the drivers read it at their first use
VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """A model and its options."""

    model: str  # as `LLM` takes it
    name: str  # what clients call it
    options: Mapping[str, Any] = field(default_factory=dict)  # keyword arguments of `LLM`
    max_waiting: int = 256  # most answers that wait
    warm: Sequence[WarmPrefix] = ()  # read before the first request
    drafts: Sequence[Mapping[str, Any]] = ()  # settings whose head or draft model is loaded, too
    # of the processor, for an engine that has a process to itself; None = all that are left
    threads: int | None = None
    devices: Sequence[int] | None = None  # of the kind that `options` name; None = any

    @classmethod
    def of(cls, config: ServerConfig) -> Self:
        """The engine of a server, or each of several."""
        given, drafts = config.options.arguments, config.settings.drafts
        if drafts and "speculation" not in given:
            given["speculation"] = drafts[0]
        name, warm = config.served_name, config.warm
        return cls(config.model, name, given, config.max_waiting, warm, drafts=drafts)

    async def open(self) -> LocalEngine:
        """Load the model, in a thread, and measure its steps: no request has to wait for that. ValueError: one
        sentence about what does not fit. RuntimeError: a rank failed."""
        if self.devices is not None:
            _see(device_kind(self.options), self.devices)
        from fastslow.engine.backends.cpu.compiled.kernel_cache import prepare

        prepare(self.options.get("device", "auto"))  # beside the import of torch
        # with torch, which only the process that runs the model needs
        import torch

        from fastslow.engine.params import Speculation
        from fastslow.llm import LLM
        from fastslow.serve.engines.local import LocalEngine

        if self.threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(self.threads)
            torch.set_num_threads(self.threads)
        llm = await asyncio.to_thread(LLM, self.model, **self.options)
        engine = LocalEngine(llm, self.name, self.max_waiting)
        try:
            for fields in self.drafts:
                await asyncio.to_thread(llm._drafters.make, Speculation(**fields))
            await asyncio.to_thread(llm.measure_steps)
            for prefix in self.warm:
                await engine.warm(prefix)
        except BaseException:
            await engine.close()
            raise
        return engine


def device_kind(options: Mapping[str, Any]) -> str:
    """The kind of device that keyword arguments of `LLM` name, such as "cuda" of "cuda:1"."""
    return str(options.get("device", "auto")).partition(":")[0]


def _see(kind: str, devices: Sequence[int]) -> None:
    """ValueError: this process itself may not see that many; one sentence."""
    name = VISIBLE[kind]
    there = [one for one in os.environ.get(name, "").split(",") if one]
    if there and max(devices) >= len(there):
        raise ValueError(f"{name}={','.join(there)} has no device of number {max(devices)}")
    os.environ[name] = ",".join(there[n] if there else str(n) for n in devices)
