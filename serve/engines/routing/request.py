"""Request as a router sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastslow.serve.api.engine import ModelCard
from fastslow.serve.api.generate_request import GenerateRequest

# of a prompt that a router reads: what comes later hardly changes where it goes
MOST_CHARACTERS = 65_536
CHARACTERS = 4  # of a token, about
DEFAULT = "deep"  # the mode of a request that names none


@dataclass(frozen=True, slots=True)
class RoutedRequest:
    """A request, as far as it matters to where it goes."""

    id: str
    mode: str  # its name, or "base+..." for fields that the request has changed
    deep: bool  # whether it may take long: its mode thinks
    prompt: str  # the text that it begins with, roles included, at most MOST_CHARACTERS
    prompt_tokens: int  # of the whole prompt; estimated where the text is not tokenised
    latency_ms: float | None = None
    memory_key: str = ""  # KV is shared only between requests of one key
    avoid: tuple[str, ...] = ()  # replicas that just failed

    @property
    def urgent(self) -> bool:
        """A quick request with a target: replicas are reserved for these."""
        return self.latency_ms is not None and not self.deep


def routed_of(request: GenerateRequest, card: ModelCard) -> RoutedRequest:
    """A request, as routers see it."""
    mode: Any = request.options.mode
    fields = {} if isinstance(mode, str | None) else mode
    base = str(fields.get("base") or DEFAULT) if fields else str(mode or DEFAULT)
    preset = card.modes.get(base, {})
    prompt, tokens = _seen(request.prompt)
    return RoutedRequest(
        id=request.id,
        mode=_name(base, fields),
        deep=may_take_long({**preset, **fields}),
        prompt=prompt,
        prompt_tokens=tokens,
        latency_ms=fields.get("latency_ms", preset.get("latency_ms")),
        memory_key=request.options.memory_key or "",
        avoid=tuple(request.avoid),
    )


def may_take_long(mode: Mapping[str, Any]) -> bool:
    """Tell whether requests of a mode may think, by its fields. A mode that chooses another mode may choose one that
    thinks. A model that cannot think takes longer in its deep mode, too."""
    return mode.get("thinking", "auto") != "off" or bool(mode.get("auto"))


def _name(base: str, fields: Mapping[str, Any]) -> str:
    """The name of a mode; fields that change its keys and values are part of it."""
    given = {name: fields.get(name) for name in ("groups", "experts")}
    return "+".join([base, *(f"{name}={n}" for name, n in given.items() if n is not None)])


def _seen(prompt: str | Sequence[int] | Sequence[Mapping[str, object]]) -> tuple[str, int]:
    """Return the text that a prompt begins with, and about how many tokens the prompt has."""
    if prompt and isinstance(prompt[0], int):
        return "".join(f"{n} " for n in prompt[:MOST_CHARACTERS])[:MOST_CHARACTERS], len(prompt)
    text = prompt if isinstance(prompt, str) else "".join(map(_text_of, prompt))
    return text[:MOST_CHARACTERS], len(text) // CHARACTERS + 1


def _text_of(message: Any) -> str:
    if not isinstance(message, Mapping):
        return f"\n{message or ''}\n"
    content = message.get("content")
    if isinstance(content, list):
        texts = (str(one.get("text", "")) for one in content if isinstance(one, Mapping))
        content = "\n".join(texts)
    return f"{message.get('role')}\n{content or ''}\n"
