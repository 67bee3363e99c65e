"""Text for a router that compares prompts: as long as the prompt's, and alike where its pieces are."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

from fastslow.serve.engines.routing.request import MOST_CHARACTERS
from fastslow.tools.simulate.trace import TracedRequest

CHARACTERS = 4  # of a token, as English has them


def prompt_text(request: TracedRequest) -> str:
    """The beginning of a request's prompt."""
    parts, room = [], MOST_CHARACTERS
    left = request.prompt_tokens
    for name, tokens in request.prefix:
        if room <= 0:
            break
        part = _shared(name, min(CHARACTERS * tokens, room))
        parts.append(part)
        room -= len(part)
        left -= tokens
    if room > 0 and left > 0:
        parts.append(_text(request.id, min(CHARACTERS * left, room)))
    return "".join(parts)


def _text(name: str, characters: int) -> str:
    """Text of a name alone."""
    word = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
    return (word * (characters // len(word) + 1))[:characters]


_shared = lru_cache(10_000)(_text)
