"""Requests that the OpenAPI document makes up: no 5xx, and no answer that it does not describe."""

from __future__ import annotations

from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
SHORT = {"max_tokens": 2, "max_completion_tokens": 2}


def run(url: str, cases: int, mode: Any) -> dict[str, int]:
    """Ask every operation so many times; returns how often each status came."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses: dict[str, int] = {}
    with httpx.Client(base_url=url, timeout=60) as client:
        operations = [result.ok() for result in schema.get_all_operations()]
        for operation in operations:

            @settings(
                max_examples=max(1, cases // len(operations)),
                database=None,
                deadline=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @schemathesis.pytest.given_case(operation, mode) if False else _given(operation, mode)
            def ask(case: Any) -> None:
                if isinstance(case.body, dict):
                    for name in SHORT.keys() & case.body.keys():
                        if isinstance(case.body[name], int):
                            case.body[name] = min(case.body[name], SHORT[name])
                    if isinstance(case.body.get("n"), int):
                        case.body["n"] = min(case.body["n"], 2)
                answer = case.call(base_url=url)
                key = f"{operation.label} {answer.status_code}"
                statuses[key] = statuses.get(key, 0) + 1
                case.validate_response(answer, checks=CHECKS)

            ask()
    return statuses


def _given(operation: Any, mode: Any) -> Any:
    from hypothesis import given

    return given(case=operation.as_strategy(generation_mode=mode))
