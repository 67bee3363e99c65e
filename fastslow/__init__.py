"""fastslow: speculative decoding with fast and slow thinking.

`import fastslow` is light: torch is imported when a model is. The names below come on first use.

The log is off, as in any library: `loguru.logger.enable("fastslow")` turns it on.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from loguru import logger

from fastslow.engine.model.family import register_on_use

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastslow.admission import Busy
    from fastslow.api import chat, generate
    from fastslow.async_llm import AsyncLLM
    from fastslow.engine.core.stats import EngineStats
    from fastslow.engine.model.family import Family
    from fastslow.engine.parallel.sharding import Parallel
    from fastslow.engine.params import Escalation, Mode, SamplingParams, Speculation
    from fastslow.engine.text.messages import Message
    from fastslow.llm import LLM
    from fastslow.output import (
        Completion,
        Decided,
        FastslowWarning,
        GenerationError,
        Metrics,
        Output,
        Piece,
    )
    from fastslow.policies.mode_router import ModeChoice, ModeRouter, PromptFacts
    from fastslow.request.handle import PieceStream, RequestHandle, as_completed
    from fastslow.request.options import Conversation, ModeLike, Presets, Prompt, SpeculationLike
    from fastslow.request.pin import PinnedPrefix
    from fastslow.request.resume import ResumeState

logger.disable("fastslow")

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncLLM",
    "Busy",
    "Completion",
    "Conversation",
    "Decided",
    "EngineStats",
    "Escalation",
    "FastslowWarning",
    "GenerationError",
    "Message",
    "Metrics",
    "Mode",
    "ModeChoice",
    "ModeLike",
    "ModeRouter",
    "Output",
    "Parallel",
    "Piece",
    "PieceStream",
    "PinnedPrefix",
    "Presets",
    "Prompt",
    "PromptFacts",
    "RequestHandle",
    "ResumeState",
    "SamplingParams",
    "Speculation",
    "SpeculationLike",
    "__version__",
    "as_completed",
    "chat",
    "generate",
]

_MODULES = {
    "admission": "Busy",
    "request.resume": "ResumeState",
    "api": "chat generate",
    "async_llm": "AsyncLLM",
    "request.options": "Conversation ModeLike Presets Prompt SpeculationLike",
    "request.handle": "PieceStream RequestHandle as_completed",
    "llm": "LLM",
    "request.pin": "PinnedPrefix",
    "output": "Completion Decided FastslowWarning GenerationError Metrics Output Piece",
    "engine.core.stats": "EngineStats",
    "engine.parallel.sharding": "Parallel",
    "engine.params": "Escalation Mode SamplingParams Speculation",
    "engine.text.messages": "Message",
    "policies.mode_router": "ModeChoice ModeRouter PromptFacts",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fastslow' has no attribute {name!r}")
    value = getattr(import_module(f"fastslow.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def _families() -> Sequence[Family]:
    from fastslow.engine.families import FAMILIES

    return FAMILIES


register_on_use(_families)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
