"""What replicas write to their standard error, in this process: their log comes out beside its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from loguru import logger

OURS, NAME = "ServeReplica:", "fastslow"


def show_lines() -> None:
    """Show their lines as they are, in the form that the operator wants. Ray itself would put its own words in
    front of each, and add what its other processes say, which is for the debug level here."""
    try:
        from ray._private import worker
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as lines
    except ImportError:
        logger.warning("this version of Ray shows the log of replicas in its own form")
        return
    for name in ("ray_print_logs", NAME):
        lines.remove_handler(name)
    lines.add_handler(NAME, _show)
    if hasattr(worker, "print_to_stdstream"):  # its thread for errors does not ask the handlers
        worker.print_to_stdstream = _show_error


def _show_error(data: Mapping[str, Any], ignore_prefix: bool = False) -> None:
    """A page of text for each process that ends. What it means for answers is told by us."""
    _show(data)


def _show(data: Mapping[str, Any]) -> None:
    for line in data.get("lines", ()):
        if str(data.get("actor_name") or "").startswith(OURS):
            print(line, file=sys.stderr, flush=True)
        else:
            logger.debug("Ray, {}: {}", data.get("actor_name") or data.get("pid"), line)
