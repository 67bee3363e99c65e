"""`EngineReplica`: an engine in a process of Ray Serve's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from loguru import logger
from msgspec import to_builtins
from ray import serve

from fastslow.serve.engines.engine_settings import EngineSettings
from fastslow.serve.engines.process.answer_stream import AnswerStream
from fastslow.serve.engines.process.failures import KINDS, failure_of
from fastslow.serve.engines.process.frames import packed
from fastslow.serve.engines.process.messages import Failure
from fastslow.serve.engines.routing.request import RoutedRequest
from fastslow.serve.observe.logs import ServerLog
from fastslow.serve.ray.load_failure import load_failure
from fastslow.serve.ray.loopback import replica_on_loopback
from fastslow.serve.ray.messages import Accepted, Bunch, Returned, ask_of
from fastslow.serve.ray.scaling import autoscaling_stats

if TYPE_CHECKING:
    from fastslow.output import Piece
    from fastslow.serve.engines.local import LocalEngine

BUNCH = 0.02  # seconds between the items of an answer, behind its first piece: each costs what a token does
ALIVE = 2.0  # seconds without a piece, behind which an item says that this replica is still there
NOBODY = 600.0  # seconds: Ray takes all items at once, so that its own end is what cuts an answer


class EngineReplica:
    """A deployment class of Ray Serve. Its methods take the `RoutedRequest` that chose this replica, and give
    messages as bytes: errors are data in them, so that they keep their kind and no traceback reaches clients.

    Args:
        settings: the fields of `EngineSettings`.
        threads: processor threads of the engine, and of each of its ranks.
    """

    async def __init__(  # type: ignore[misc]
        self, settings: Mapping[str, Any], threads: int
    ) -> None:
        self._log = ServerLog.of_environment()
        replica_on_loopback()
        self._id: str = serve.get_replica_context().replica_id.unique_id
        try:
            self._engine = await _opened(EngineSettings(**settings), threads)
        except Exception as error:  # noqa: BLE001 - who deploys it tells of it
            if not isinstance(error, KINDS):
                logger.exception("the model cannot be loaded")
            raise load_failure(error) from None
        logger.info("replica {} has loaded {}", self._id, self._engine.card.name)

    async def stream(self, routed: RoutedRequest, ask: bytes) -> AsyncGenerator[bytes, None]:
        """The items of an answer. Whoever leaves the loop cancels the request."""
        yield packed(Accepted(self._id))
        answer = AnswerStream(NOBODY)
        filling = asyncio.create_task(self._fill(answer, ask))
        try:
            while (pieces := await _taken(answer)) != []:
                yield packed(Bunch(pieces or []))
                await asyncio.wait([filling], timeout=BUNCH)
        except Exception as error:  # noqa: BLE001 - it is the client's
            yield packed(Bunch([], _told(error)))
        finally:
            filling.cancel()
            with suppress(asyncio.CancelledError):
                await filling

    async def card(self) -> bytes:
        """What clients may know of the model."""
        return packed(Returned(self._id, to_builtins(self._engine.card)))

    async def cancel(self, routed: RoutedRequest) -> bytes:
        """As `Engine.cancel` of the request's id; so below."""
        return await self._returned(self._engine.cancel(routed.id))

    async def stop_thinking(self, routed: RoutedRequest) -> bytes:
        return await self._returned(self._engine.stop_thinking(routed.id))

    async def trace(self, routed: RoutedRequest) -> bytes:
        return await self._returned(self._engine.trace(routed.id))

    async def stats(self) -> bytes:
        return await self._returned(self._engine.stats())

    async def tokenize(self, routed: RoutedRequest, ask: bytes) -> bytes:
        return await self._returned(self._engine.tokenize(ask_of(ask)))

    async def detokenize(self, routed: RoutedRequest, tokens: Sequence[int]) -> bytes:
        return await self._returned(self._engine.detokenize(list(tokens)))

    async def token_bytes(self, routed: RoutedRequest, tokens: Sequence[int]) -> bytes:
        return await self._returned(self._engine.token_bytes(list(tokens)))

    async def check_health(self) -> None:
        """Ray asks this every few seconds, and replaces a replica that raises or does not answer. A long step
        of the model is no hang: this answers meanwhile.

        Raises:
            RuntimeError: the engine is broken.
        """
        if self._engine.broken:
            raise RuntimeError("the engine broke")

    async def record_routing_stats(self) -> dict[str, Any]:
        """The fields of a `ReplicaReport`, which Ray gives to all routers."""
        return self._engine.report().to_dict()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the policy of scaling reads."""
        return autoscaling_stats(self._engine.report())

    async def __del__(self) -> None:
        """Ray Serve has waited for the answers that ran, and ends the process now."""
        if hasattr(self, "_engine"):
            await self._engine.close()
        self._log.close()

    async def _fill(self, answer: AnswerStream, ask: bytes) -> None:
        """Put the pieces of an answer where they wait to be sent."""
        failure: Exception | None = None
        try:
            async with aclosing(self._engine.stream(ask_of(ask))) as pieces:
                async for piece in pieces:
                    answer.put(piece)
        except Exception as error:  # noqa: BLE001 - it is the client's
            failure = error
        answer.end(failure)

    async def _returned(self, call: Awaitable[Any]) -> bytes:
        try:
            return packed(Returned(self._id, await call))
        except Exception as error:  # noqa: BLE001 - it is the client's
            return packed(Returned(self._id, None, _told(error)))


async def _taken(answer: AnswerStream) -> list[Piece] | None:
    """What has come of an answer, [] where that was all, and None where nothing comes yet."""
    limit = asyncio.timeout(ALIVE)
    try:
        async with limit:
            return await answer.take()
    except TimeoutError:
        if not limit.expired():
            raise
        return None


async def _opened(settings: EngineSettings, threads: int) -> LocalEngine:
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)  # for ranks, each a process of its own
    torch.set_num_threads(threads)
    return await settings.open()


def _told(error: Exception) -> Failure:
    if not isinstance(error, KINDS):
        logger.exception("a request failed")
    return failure_of(error)
