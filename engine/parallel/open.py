"""Opening of a model on one rank or many, as an `LLM` asks for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.base import Model
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.parallel.sharding import Parallel, usual
from fastslow.engine.parallel.torchrun import Launched

Build = TypeVar("Build", bound=Callable[..., None])


def open_model(
    folder: Path, parallel: str | Parallel | None, ranks: ExitStack, **options: Any
) -> Model:
    """The model in `folder`, on one rank or many, which `ranks` ends. parallel: as `wanted` takes it."""
    shared = wanted(parallel, folder)
    if shared is None:
        return load_model(folder, **options)
    from fastslow.engine.parallel.model import load_parallel

    model = load_parallel(folder, shared, **options)
    ranks.callback(model.close)
    return model


def ends_ranks_if_it_fails(build: Build) -> Build:
    """For an __init__ that has ranks end with the exit stack `_ranks`: what fails later ends them."""

    @wraps(build)
    def guarded(owner: Any, *arguments: Any, **options: Any) -> None:
        try:
            build(owner, *arguments, **options)
        except BaseException:
            getattr(owner, "_ranks", ExitStack()).close()
            raise

    return cast(Build, guarded)


def wanted(parallel: str | Parallel | None, folder: Path) -> Parallel | None:
    """Return the ranks that an `LLM` is asked for; None = one process alone.

    "auto": all processes of torchrun, as whole groups of experts where there are enough, else by heads or rows."""
    if isinstance(parallel, str) and parallel != "auto":
        parallel = Parallel.parse(parallel)
    if isinstance(parallel, str):
        launched = Launched.from_environment()
        ranks = 1 if launched is None else launched.ranks
        parallel = None if ranks == 1 else usual(ModelConfig.from_folder(folder), ranks)
    return None if parallel is None or parallel.ranks == 1 else parallel
