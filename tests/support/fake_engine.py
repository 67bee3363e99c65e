"""An engine that answers by a script, for tests of the server."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from fastslow.engine.core.spec_decode_stats import DraftCounts
from fastslow.engine.sampling.stop import Reason
from fastslow.output import Completion, Metrics, Output, Piece
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.generate_request import GenerateRequest

TINY = ModelCard("tiny", 1_764_000_000, 512, {"fast": {}, "deep": {}, "auto": {}}, "groups", 4, True, False)


def metrics(**fields: Any) -> Metrics:
    """Figures of an answer of six tokens in three steps, of which two drafted."""
    usual: dict[str, Any] = {"mode": "deep", "drafter": "suffix", "tokens": 6, "steps": 3}
    usual |= {"drafted": 5, "accepted": 3, "cut": 0, "runs": [2, 1, 0], "acceptance": [0.66, 0.5]}
    usual |= {"by_drafter": {"suffix": DraftCounts(5, 3, [3, 2], [2, 1])}}
    usual |= {"ttft": 0.2, "tpot": 0.1, "draft_seconds": 0.0, "verify_seconds": 0.0}
    usual |= {"run_seconds": 0.6, "queue_seconds": 0.1}
    usual |= {"prompt_tokens": 10, "cached_tokens": 4, "preemptions": 0}
    return Metrics(**{**usual, **fields})


def output(text: str = "an answer", reason: Reason = "stop", **fields: Any) -> Output:
    """A whole answer."""
    figures = metrics(**fields)
    ids = list(range(figures.tokens))
    failed = "it broke" if reason == "error" else None
    made = Completion(text, "", ids, reason, None, None, figures, failed)
    return Output("a prompt", list(range(figures.prompt_tokens)), [made])


Script = Callable[[GenerateRequest], AsyncGenerator[Piece, None]]


async def in_pieces(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
    """An answer in three pieces."""
    for n in range(3):
        yield Piece(text=f"part {n} ", token_ids=[n, n])
    yield Piece(output=output("part 0 part 1 part 2 "))


class FakeEngine:
    """An `Engine` that answers by a script, and remembers what it was asked."""

    def __init__(self, script: Script = in_pieces) -> None:
        self.script = script
        self.asked: list[GenerateRequest] = []
        self.cancelled: list[str] = []
        self.restarts = 0
        self.figures: dict[str, Any] = {"running": 2, "waiting": 1, "steps": 5, "tokens": 30}
        self.figures |= {"prompt_tokens": 40, "cached_tokens": 8, "ended": {}, "drafters": {}}
        self.figures |= {"pages": 10, "pages_used": 4, "pages_free": 5, "pages_cached": 1}
        modes = {"deep": {"evicted_pages": 2}, "of its own": {"evicted_pages": 3}}
        self.figures |= {"pages_pinned": 1, "modes": modes}
        self.figures |= {"states": 9, "states_used": 2, "states_cached": 4, "states_free": 3, "state_bytes": 600}
        self.figures |= {"windows": 9, "windows_used": 2, "windows_cached": 4, "windows_free": 3}

    @property
    def card(self) -> ModelCard:
        return TINY

    @property
    def ready(self) -> bool:
        return True

    @property
    def why_not_ready(self) -> str:
        return ""

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        self.asked.append(request)
        async for piece in self.script(request):
            yield piece

    async def cancel(self, id: str) -> bool:
        self.cancelled.append(id)
        return True

    async def stop_thinking(self, id: str) -> bool:
        return True

    async def trace(self, id: str) -> Mapping[str, Any] | None:
        return {"steps": []}

    async def stats(self) -> Mapping[str, Any]:
        return self.figures

    async def tokenize(self, request: GenerateRequest) -> list[int]:
        return [1, 2, 3]

    async def detokenize(self, tokens: list[int]) -> str:
        return "text"

    async def token_bytes(self, tokens: Sequence[int]) -> list[tuple[bytes, bool]]:
        return [(b"x", True) for _ in tokens]

    async def close(self, drain: float = 0.0) -> None:
        return None
