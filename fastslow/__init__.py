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

    from fastslow.admission import Busy as Busy
    from fastslow.api import chat as chat
    from fastslow.api import generate as generate
    from fastslow.async_llm import AsyncLLM as AsyncLLM
    from fastslow.engine.core.stats import EngineStats as EngineStats
    from fastslow.engine.model.family import Family
    from fastslow.engine.parallel.sharding import Parallel as Parallel
    from fastslow.engine.params import AnswerConfidence as AnswerConfidence
    from fastslow.engine.params import Escalation as Escalation
    from fastslow.engine.params import Loop as Loop
    from fastslow.engine.params import Mode as Mode
    from fastslow.engine.params import Phase as Phase
    from fastslow.engine.params import SamplingParams as SamplingParams
    from fastslow.engine.params import Speculation as Speculation
    from fastslow.engine.text.messages import Message as Message
    from fastslow.llm import LLM as LLM
    from fastslow.output import Completion as Completion
    from fastslow.output import Decided as Decided
    from fastslow.output import FastslowWarning as FastslowWarning
    from fastslow.output import GenerationError as GenerationError
    from fastslow.output import Metrics as Metrics
    from fastslow.output import Output as Output
    from fastslow.output import Piece as Piece
    from fastslow.output import ToolCall as ToolCall
    from fastslow.policies.mode_router import ModeChoice as ModeChoice
    from fastslow.policies.mode_router import ModeRouter as ModeRouter
    from fastslow.policies.mode_router import PromptFacts as PromptFacts
    from fastslow.request.handle import PieceStream as PieceStream
    from fastslow.request.handle import RequestHandle as RequestHandle
    from fastslow.request.handle import as_completed as as_completed
    from fastslow.request.options import Conversation as Conversation
    from fastslow.request.options import ModeLike as ModeLike
    from fastslow.request.options import Presets as Presets
    from fastslow.request.options import Prompt as Prompt
    from fastslow.request.options import SpeculationLike as SpeculationLike
    from fastslow.request.pin import PinnedPrefix as PinnedPrefix
    from fastslow.request.resume import ResumeState as ResumeState

logger.disable("fastslow")

__version__ = "0.2.0"

_MODULES = {
    "admission": "Busy",
    "request.resume": "ResumeState",
    "api": "chat generate",
    "async_llm": "AsyncLLM",
    "request.options": "Conversation ModeLike Presets Prompt SpeculationLike",
    "request.handle": "PieceStream RequestHandle as_completed",
    "llm": "LLM",
    "request.pin": "PinnedPrefix",
    "output": "Completion Decided FastslowWarning GenerationError Metrics Output Piece ToolCall",
    "engine.core.stats": "EngineStats",
    "engine.parallel.sharding": "Parallel",
    "engine.params": "AnswerConfidence Escalation Loop Mode Phase SamplingParams Speculation",
    "engine.text.messages": "Message",
    "policies.mode_router": "ModeChoice ModeRouter PromptFacts",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = ["__version__", *_MODULE_OF]  # noqa: PLE0604


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
