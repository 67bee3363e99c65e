"""Log-probabilities of a prompt, in vLLM's shape."""

from __future__ import annotations

from typing import Any

from fastslow.serve.http.token_table import TokenTable
from fastslow.serve.openai.logprobs import Places, finite


def prompt_logprobs(places: Places, table: TokenTable) -> list[dict[str, Any] | None]:
    """For each token of the prompt, by token id; nothing for the first one."""
    return [
        None
        if place is None
        else {
            str(token): {"logprob": finite(value), "decoded_token": table.text_of(token)}
            for token, value in place.items()
        }
        for place in places
    ]
