"""Requests to an engine, with the options that a test names."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastslow.request.options import GenerateOptions
from fastslow.serve.api.generate_request import GenerateRequest


def made_request(
    id: str,
    prompt: Any,
    sampling: Mapping[str, Any] = {},
    *,
    streamed: bool = True,
    avoid: Sequence[str] = (),
    whole: bool = False,
    **options: Any,
) -> GenerateRequest:
    return GenerateRequest(id, prompt, GenerateOptions(sampling=sampling, **options), streamed, avoid, whole)
