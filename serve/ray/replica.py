"""`EngineReplica`: an engine in a process of Ray Serve's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

from loguru import logger
from msgspec import msgpack, to_builtins
from ray import serve

from fastslow.serve.api.engine import called
from fastslow.serve.engines.process.connection import AnswerStream
from fastslow.serve.engines.process.messages import arguments_of, failure_of, packed
from fastslow.serve.engines.settings import EngineSettings
from fastslow.serve.observe.logs import ServerLog
from fastslow.serve.ray.messages import Reply, load_failure
from fastslow.serve.ray.scaling import autoscaling_stats

if TYPE_CHECKING:
    from fastslow.output import Piece

BUNCH = 0.02  # seconds between the items of an answer, after its first piece: each costs what a token does
ALIVE = 2.0  # seconds without a piece, after which an item says that this replica is still there


class EngineReplica:
    """A deployment class of Ray Serve. Its methods take the name of the replica that is asked, and give messages
    as bytes: errors are data in them, so that they keep their kind and no traceback reaches clients."""

    async def __init__(self, settings: Mapping[str, Any]) -> None:  # type: ignore[misc]
        self._log = ServerLog.of_environment()
        self._id: str = serve.get_replica_context().replica_id.unique_id
        try:
            self._engine = await EngineSettings(**settings).open()
        except Exception as error:  # noqa: BLE001 - the deployment's status has it
            raise load_failure(error) from None
        logger.info("replica {} has loaded {}", self._id, self._engine.card.name)

    async def stream(self, name: str, request: bytes) -> AsyncGenerator[bytes, None]:
        """The items of an answer. Whoever leaves the loop cancels the request."""
        yield packed(Reply(self._id))
        answer = AnswerStream()
        filling = asyncio.create_task(self._fill(answer, request))
        try:
            while (pieces := await _taken(answer)) != []:
                yield packed(Reply(self._id, pieces or []))
                await asyncio.wait([filling], timeout=BUNCH)
        except Exception as error:  # noqa: BLE001 - it is the client's
            yield packed(Reply(self._id, failure=failure_of(error)))
        finally:
            filling.cancel()
            with suppress(asyncio.CancelledError):
                await filling

    async def call(self, name: str, method: str, arguments: bytes) -> bytes:
        """Any other method of `Engine`, and its card."""
        try:
            if method == "card":
                value: Any = to_builtins(self._engine.card)
            else:
                value = await called(self._engine, method, _unpacked(arguments))
            return packed(Reply(self._id, value=value))
        except Exception as error:  # noqa: BLE001 - it is the client's
            return packed(Reply(self._id, failure=failure_of(error)))

    async def check_health(self) -> None:
        """Ray asks this every few seconds, and replaces a replica that raises or does not answer. A long step
        of the model is no hang: this answers meanwhile."""
        if self._engine.broken:
            raise RuntimeError("the engine broke")

    async def record_routing_stats(self) -> dict[str, Any]:
        """The fields of a `ReplicaReport`, which Ray gives to all routers."""
        return self._engine.report().to_dict()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the figures that `QueueScaling` reads."""
        return autoscaling_stats(self._engine.report())

    async def __del__(self) -> None:
        """Ray Serve has waited for the answers that ran, and ends the process now."""
        if hasattr(self, "_engine"):
            await self._engine.close()
        self._log.close()

    async def _fill(self, answer: AnswerStream, request: bytes) -> None:
        """Put the pieces of an answer where they wait to be sent."""
        failure: Exception | None = None
        try:
            async with aclosing(self._engine.stream(*_unpacked(request))) as pieces:
                async for piece in pieces:
                    answer.put(piece)
        except Exception as error:  # noqa: BLE001 - it is the client's
            failure = error
        answer.end(failure)


async def _taken(answer: AnswerStream) -> list[Piece] | None:
    """Take what has come of an answer, [] where that was all, and None where nothing comes yet."""
    limit = asyncio.timeout(ALIVE)
    try:
        async with limit:
            return await answer.take()
    except TimeoutError:
        if not limit.expired():
            raise
        return None


def _unpacked(arguments: bytes) -> list[Any]:
    return arguments_of(msgpack.decode(arguments))
