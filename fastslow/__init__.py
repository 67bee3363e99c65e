"""fastslow: speculative decoding with fast and slow thinking.

`import fastslow` is light: torch is imported when a model is. The names below come on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastslow.api import generate
    from fastslow.engine.parallel.sharding import Parallel
    from fastslow.engine.params import Mode, SamplingParams, Speculation
    from fastslow.llm import LLM
    from fastslow.output import GenerationError, Output, Piece

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "GenerationError",
    "Mode",
    "Output",
    "Parallel",
    "Piece",
    "SamplingParams",
    "Speculation",
    "__version__",
    "generate",
]

_HOMES = {
    "LLM": "fastslow.llm",
    "GenerationError": "fastslow.output",
    "Mode": "fastslow.engine.params",
    "Output": "fastslow.output",
    "Parallel": "fastslow.engine.parallel.sharding",
    "Piece": "fastslow.output",
    "SamplingParams": "fastslow.engine.params",
    "Speculation": "fastslow.engine.params",
    "generate": "fastslow.api",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastslow' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
