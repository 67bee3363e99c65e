"""`Ingress`: the server's application inside of a cluster, behind the HTTP proxies of Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from loguru import logger
from ray import serve

from fastslow.serve.api.keys import known_keys
from fastslow.serve.api.settings import ServerSettings
from fastslow.serve.engines.continued_engine import ContinuedEngine
from fastslow.serve.http.app import create_app
from fastslow.serve.http.operations import OperationSettings
from fastslow.serve.observe.logs import ServerLog
from fastslow.serve.observe.tracing import tracing
from fastslow.serve.ray.arguments import Arguments
from fastslow.serve.ray.deployed import Replicas, replicas_now
from fastslow.serve.ray.engine import RayEngine
from fastslow.serve.ray.loopback import replica_on_loopback


class FoundDeployment:
    """Engines of the same application, which Ray Serve starts and ends.

    Args:
        handle: of their deployment.
        name: of the application.
    """

    def __init__(self, handle: Any, name: str) -> None:
        self._handle = handle
        self._name = name

    async def open(self) -> Any:
        return self._handle

    async def look(self) -> Replicas:
        return await asyncio.to_thread(replicas_now, self._name)

    async def close(self) -> None:
        """Ray Serve ends them."""


class Ingress:
    """A deployment class of Ray Serve: what `fastslow serve` has in front of its engine.

    Args:
        handle: of the engines.
        arguments: the fields of `Arguments`.
    """

    async def __init__(self, handle: Any, arguments: Mapping[str, Any]) -> None:  # type: ignore[misc]
        self._log = ServerLog.of_environment()
        replica_on_loopback()
        given = Arguments(**arguments)
        name = serve.get_replica_context().app_name
        self._engine = RayEngine(FoundDeployment(handle, name))
        keys = known_keys(None if given.api_keys is None else Path(given.api_keys), ())
        traced = tracing()
        operations = OperationSettings(
            keys=keys,
            model=given.engine.name,
            concurrent=given.max_requests,
            body_seconds=given.body_seconds,
            allow_origins=given.allow_origins,
            allow_hosts=given.allow_hosts,
            log_texts=given.log_texts,
            metrics_by_key=given.metrics_by_key,
            observers=() if traced is None else (traced,),
            lost_lines=lambda: self._log.lost,
        )
        self._settings = ServerSettings(**given.settings)
        self._app = create_app(ContinuedEngine(self._engine), self._settings, operations)
        self._starting = asyncio.create_task(self._start())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    async def __del__(self) -> None:
        if hasattr(self, "_starting"):  # else it could not be made
            self._starting.cancel()
            await self._engine.close()
        self._log.close()

    async def _start(self) -> None:
        """Until the engines are there, /ready says so."""
        try:
            await self._engine.start()
            self._settings.fit(self._engine.card.modes)
        except Exception as error:  # noqa: BLE001 - the deployment's status tells it, too
            logger.error("the server cannot be used as it is: {}", error)
