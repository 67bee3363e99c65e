"""A Ray cluster of this machine for one server: no more processes than that needs, and none that outlives it for long."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from loguru import logger

from fastslow.serve.api.keys import KEY_VARIABLE
from fastslow.serve.ray.loopback import ON_LOOPBACK

# Where this process is killed, Linux ends Ray's own processes with it. Their agents watch a pipe with this, and
# look only now and then without; then they try for a minute to tell the others, which nothing shortens.
ENDING = {"RAY_enable_pipe_based_agent_to_parent_health_check": "1"}
# The head of the dashboard, which runs even without a dashboard, and what starts and ends machines in a cloud: each
# is an interpreter, and the first holds up the start.
NOT_NEEDED = ("start_api_server", "start_monitor")


@contextmanager
def lean(environment: Mapping[str, str]) -> Iterator[None]:
    """While the cluster starts.

    Args:
        environment: variables that its processes get. Ray could give them to single ones, but then what it has
            started beforehand does not fit, and starts again.
    """
    wanted = {**ENDING, **ON_LOOPBACK, **environment}
    before = {name: os.environ.get(name) for name in (*wanted, KEY_VARIABLE)}
    os.environ.update(wanted)
    os.environ.pop(KEY_VARIABLE, None)  # its processes know no keys
    kept = _without_processes()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _set(kept)


def _without_processes() -> dict[str, Callable[..., None]]:
    """What Ray had in their place."""
    from ray._private.node import Node

    kept = {name: vars(Node)[name] for name in NOT_NEEDED if name in vars(Node)}
    if len(kept) < len(NOT_NEEDED):
        logger.warning("this version of Ray starts processes that are not needed here")
        return {}
    _set({"start_api_server": _no_dashboard, "start_monitor": _nothing})
    return kept


def _set(methods: Mapping[str, Callable[..., None]]) -> None:
    from ray._private.node import Node

    for name, method in methods.items():
        setattr(Node, name, method)


def _no_dashboard(node: Any, **options: Any) -> None:
    node._webui_url = ""  # as Ray has it where no dashboard is wanted


def _nothing(node: Any) -> None:
    """Nobody is to be told."""
