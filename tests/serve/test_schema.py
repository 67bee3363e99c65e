"""Requests that the OpenAPI document makes up: no 5xx, and no answer that it does not describe."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

# else a case may take a minute
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n")
# half of all cases are of these, by the field that says how long an answer may be
ASKING = {
    "POST /v1/chat/completions": "max_tokens", "POST /v1/completions": "max_tokens",
    "POST /v1/messages": "max_tokens", "POST /v1/responses": "max_output_tokens",
}  # fmt: skip


def run(url: str, cases: int) -> Counter[str]:
    """Make this many requests, half of them wrong ones; how often each status came."""
    import schemathesis  # not at the top: whoever collects tests would wait a second for it

    found: Any = schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()
    operations = [result.ok() for result in found]
    seen: Counter[str] = Counter()
    for operation in operations:
        asks = operation.label in ASKING
        share = cases / 2 / (len(ASKING) if asks else len(operations) - len(ASKING))
        for mode in schemathesis.GenerationMode:
            if mode.is_positive or operation.body:
                seen += _ask(url, operation, mode, max(1, round(share / 2)))
    return seen


def _ask(url: str, operation: Any, mode: Any, cases: int) -> Counter[str]:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    seen: Counter[str] = Counter()
    checked: Any = [
        *(not_a_server_error, checks.content_type_conformance),
        *(checks.response_schema_conformance, checks.status_code_conformance),
    ]

    @settings(
        max_examples=cases, database=None, deadline=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        if isinstance(case.body, dict):
            for name in LIMITS:
                if isinstance(case.body.get(name), int):
                    case.body[name] = min(case.body[name], 2)
            if mode.is_positive:
                _make_likely(case.body, ASKING.get(operation.label))
        answer = case.call(base_url=url)
        seen[f"{answer.status_code // 100}xx"] += 1
        case.validate_response(answer, checks=checked)

    ask()
    return seen


def _make_likely(body: dict[str, Any], limit: str | None) -> None:
    """Two of three bodies get a plain prompt and no more than three of their fields, and name no model and
    no mode: else hardly any case is answered."""
    if sum(map(len, body)) % 3:
        needed = {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "tokens": [80]}
        needed["input"] = "hi"
        for name in [name for name in body if name not in needed][3:] + ["model", "mode"]:
            body.pop(name, None)
        body.update({name: value for name, value in needed.items() if name in body})
    if limit is not None:
        body.setdefault(limit, 2)


@pytest.mark.parametrize("cases", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_made_up_cases(url: str, cases: int) -> None:
    seen = run(url, cases)
    assert seen["2xx"] > cases // 20 and seen["4xx"] > cases // 4 and not seen["5xx"]
