"""Whether a process that has not ended still does anything."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastslow.serve.engines.process.link import EngineConnection
from fastslow.serve.engines.process.messages import Ping


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Asks a process whether it lives, over and over.

    A long step of the model is no hang: the event loop of the process answers meanwhile. Time in which this
    process could not run itself, as while a machine sleeps, counts as one pause at most.

    Attributes:
        every: seconds between a question and the next one, and of each pause in which its answer may come.
        missed: after as many pauses without the answer the process counts as hung.
    """

    every: float = 10.0
    missed: int = 6

    @property
    def seconds(self) -> float:
        """How long a process may say nothing."""
        return self.every * self.missed

    async def watch(self, link: EngineConnection) -> str:
        """Wait until a process is lost, or to be ended: what is wrong with it, "" if it is lost."""
        while True:
            answer = asyncio.ensure_future(link.call(Ping))
            try:
                for _ in range(self.missed):
                    either: list[asyncio.Future[None]] = [link.lost, answer]
                    await asyncio.wait(
                        either, timeout=self.every, return_when=asyncio.FIRST_COMPLETED
                    )
                    if link.lost.done():
                        return ""
                    if answer.done():
                        break
                else:
                    return f"answered nothing for {self.seconds:g} s"
            finally:
                answer.cancel()
                await asyncio.gather(answer, return_exceptions=True)
            if answer.exception() is None and not answer.result():
                return "lives on without its engine, which broke"
            await asyncio.wait([link.lost], timeout=self.every)


USUAL = Heartbeat()
