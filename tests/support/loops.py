"""Tests that are coroutines."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec

P = ParamSpec("P")


def within(seconds: float = 300.0) -> Callable[[Callable[P, Coroutine[Any, Any, None]]], Callable[P, None]]:
    """Run an async test in a new loop. It fails where it takes longer."""

    def plain(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
        @wraps(test)
        def run(*arguments: P.args, **fixtures: P.kwargs) -> None:
            asyncio.run(asyncio.wait_for(test(*arguments, **fixtures), seconds))

        return run

    return plain
