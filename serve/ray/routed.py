"""What a router is to know of a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastslow.serve.api.ask import Ask
from fastslow.serve.api.engine import ModelCard
from fastslow.serve.engines.replica_report import may_take_long
from fastslow.serve.engines.routing.request import MOST_CHARACTERS, RoutedRequest

CHARACTERS = 4  # of a token, about
DEFAULT = "deep"  # the mode of an ask that names none


def routed_of(ask: Ask, card: ModelCard) -> RoutedRequest:
    """An ask, as routers see it.

    Args:
        card: of the model that is asked.
    """
    fields = {} if isinstance(ask.mode, str | None) else ask.mode
    base = str(fields.get("base") or DEFAULT) if fields else str(ask.mode or DEFAULT)
    preset = card.modes.get(base, {})
    prompt, tokens = _seen(ask.prompt)
    most = ask.sampling.get("max_tokens", ask.defaults.get("max_tokens"))
    return RoutedRequest(
        id=ask.id,
        mode=_name(base, fields),
        deep=may_take_long({**preset, **fields}),
        prompt=prompt,
        prompt_tokens=tokens,
        max_tokens=min(most, card.context) if isinstance(most, int) else card.context,
        latency_ms=fields.get("latency_ms", preset.get("latency_ms")),
        memory_key=ask.memory_key or "",
        avoid=tuple(ask.avoid),
    )


def control(id: str, replica: str = "") -> RoutedRequest:
    """A call about a request, or about none, that is no prompt."""
    return RoutedRequest(
        id=id, mode="", deep=False, prompt="", prompt_tokens=0, max_tokens=0, replica=replica
    )


def _name(base: str, fields: Mapping[str, Any]) -> str:
    """A mode with fields of its own is another one, whose keys and values may be others."""
    own = [
        f"{name}={fields[name]}" for name in ("groups", "experts") if fields.get(name) is not None
    ]
    return "+".join([base, *own])


def _seen(prompt: str | Sequence[int] | Sequence[Mapping[str, object]]) -> tuple[str, int]:
    """What a prompt begins with, as text; and how many tokens it may be."""
    if isinstance(prompt, str):
        return prompt[:MOST_CHARACTERS], len(prompt) // CHARACTERS + 1
    parts: list[str] = []
    size = count = 0
    for part in _texts(prompt):
        if size < MOST_CHARACTERS:
            parts.append(part[: MOST_CHARACTERS - size])
        size += len(part)
        count += 1
    numbers = bool(prompt) and isinstance(prompt[0], int)
    return "".join(parts), count if numbers else size // CHARACTERS + 1


def _texts(prompt: Sequence[int] | Sequence[Mapping[str, object]]) -> Iterator[str]:
    for part in prompt:
        if isinstance(part, int):
            yield f"{part} "
            continue
        content = part.get("content") if isinstance(part, Mapping) else part
        if isinstance(content, list):
            content = "\n".join(
                str(one.get("text", "")) for one in content if isinstance(one, Mapping)
            )
        yield f"{part.get('role') if isinstance(part, Mapping) else ''}\n{content or ''}\n"
