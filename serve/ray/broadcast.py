"""Calls of all replicas, some of which may not answer."""

from __future__ import annotations

import asyncio
from typing import Any

from loguru import logger


async def answers_within(response: Any, seconds: float) -> tuple[list[Any], int]:
    """What replicas answered in time, errors among it; and how many did not.

    Args:
        response: of a handle's `broadcast`. Its own `results_async` gives nothing at all where one is missing.
        seconds: for all of them together.
    """
    end = asyncio.get_running_loop().time() + seconds
    sent = getattr(response, "_fetch_replica_results_async", None)
    try:
        if sent is None:
            logger.warning("this version of Ray tells nothing of replicas where one hangs")
            return await response.results_async(timeout_s=seconds, return_exceptions=True), 0
        calls = await asyncio.wait_for(sent(), seconds)
    except TimeoutError:
        return [], 1
    tasks = [asyncio.ensure_future(call.get_async()) for call in calls]
    if not tasks:
        return [], 0
    try:
        left = max(0.0, end - asyncio.get_running_loop().time())
        done, missing = await asyncio.wait(tasks, timeout=left)
    finally:
        for task in tasks:
            task.cancel()
    return await asyncio.gather(*done, return_exceptions=True), len(missing)
