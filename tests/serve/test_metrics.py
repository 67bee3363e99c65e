"""The metrics at /metrics: names, values, and that they never go back."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from unittest.mock import patch

import pytest
from fake_engine import FakeEngine, output
from metrics_client import ASK, ask, client, scraped
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from serve_tools import call

from fastslow.engine.core.spec_decode_stats import DraftCounts
from fastslow.output import Piece
from fastslow.serve.api.engine import Busy, NotReady
from fastslow.serve.api.generate_request import GenerateRequest
from fastslow.serve.api.keys import KeyLimits
from fastslow.serve.api.limits import Caller
from fastslow.serve.http.middleware import RequestAccess
from fastslow.serve.observe import metrics
from fastslow.serve.observe.metric_table import TABLE


def test_an_answer_in_numbers() -> None:
    with client(FakeEngine()) as ours:
        for _ in range(2):
            ask(ours)
        found = scraped(ours)
    one = {
        "vllm:prompt_tokens_total": 10, "vllm:prompt_tokens_cached_total": 4, "vllm:prefix_cache_queries_total": 10,
        "vllm:prefix_cache_hits_total": 4, "vllm:generation_tokens_total": 6,
        "vllm:spec_decode_num_drafts_total": 3, "vllm:spec_decode_num_draft_tokens_total": 5,
        "vllm:spec_decode_num_accepted_tokens_total": 3, "vllm:time_to_first_token_seconds_count": 1,
        "vllm:inter_token_latency_seconds_count": 2, "vllm:request_time_per_output_token_seconds_count": 1,
        "vllm:request_time_per_output_token_seconds_sum": 0.1, "vllm:e2e_request_latency_seconds_count": 1,
        "vllm:request_queue_time_seconds_sum": 0.1,
    }  # fmt: skip
    for name, value in one.items():
        assert found[name, ()] == pytest.approx(2 * value), name
    by_place = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    assert found[by_place, (("position", "0"),)] == 4 and found[by_place, (("position", "1"),)] == 2
    assert found["vllm:request_success_total", (("finished_reason", "stop"),)] == 2
    mine = (("drafter", "suffix"), ("mode", "deep"))
    assert found["fastslow:tokens_total", mine] == 12 and found["fastslow:steps_total", mine] == 6
    assert found["fastslow:draft_tokens_total", mine] == 10
    assert found["fastslow:http_requests_total", (("method", "POST"), ("route", ASK), ("status", "200"))] == 2
    assert found["vllm:num_requests_running", ()] == 2 and found["vllm:num_requests_waiting", ()] == 1
    assert found["vllm:kv_cache_usage_perc", ()] == pytest.approx(0.4) and found["fastslow:engine_up", ()] == 1
    assert found["fastslow:prefix_hits_total", (("mode", "deep"),)] == 2
    assert found["fastslow:kv_pages_pinned", ()] == 1
    for state, count in {"used": 2, "cached": 4, "free": 3}.items():
        assert found["fastslow:running_states", (("state", state),)] == count
        assert found["fastslow:window_pages", (("state", state),)] == count
    assert found["fastslow:running_state_bytes", ()] == 600
    assert found["fastslow:evicted_pages_total", (("mode", "deep"),)] == 2
    assert found["fastslow:evicted_pages_total", (("mode", "custom"),)] == 3
    assert not any("key" in dict(labels) for _, labels in found)


def test_an_answer_that_is_not_streamed_has_times_too() -> None:
    async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        await asyncio.sleep(0.25)
        yield Piece(output=output())

    with client(FakeEngine(script)) as ours:
        ask(ours)
        found = scraped(ours)
    whole = found["vllm:e2e_request_latency_seconds_sum", ()]
    assert whole >= 0.25 and 0.2 <= found["vllm:time_to_first_token_seconds_sum", ()] < whole
    assert found["vllm:inter_token_latency_seconds_count", ()] == 2
    assert found["vllm:inter_token_latency_seconds_sum", ()] == pytest.approx(0.5)
    assert found["fastslow:time_to_first_token_seconds_count", (("mode", "deep"),)] == 1


def test_modes_drafters_and_endings() -> None:
    async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        counts = {"head": DraftCounts(4, 2, [2, 2], [1, 1]), "suffix": DraftCounts(2, 0, [2], [0])}
        first = output(mode="fast>deep", drafter="suffix|head", by_drafter=counts, escalated_at=3)
        other = output(mode="deep*", target_kept=False, thinking_tokens=7, thinking_ended="budget")
        own = output(mode="of its own", reason="length", target_kept=True)
        yield Piece(output={"1": first, "2": other, "3": own}[str(request.prompt)])

    with client(FakeEngine(script)) as ours:
        for id in "123":
            ask(ours, id)
        found = scraped(ours)
    assert found["fastslow:escalations_total", (("mode", "fast>deep"),)] == 1
    assert found["fastslow:accepted_tokens_total", (("drafter", "head"), ("mode", "fast>deep"))] == 2
    assert found["fastslow:accepted_tokens_per_position_total", (("drafter", "head"), ("position", "1"))] == 1
    assert found["fastslow:thinking_tokens_total", (("mode", "deep"),)] == 7
    assert found["fastslow:thinking_ended_total", (("reason", "budget"),)] == 1
    assert found["fastslow:targets_total", (("kept", "no"), ("mode", "deep"))] == 1
    assert found["fastslow:targets_total", (("kept", "yes"), ("mode", "custom"))] == 1
    assert found["vllm:request_success_total", (("finished_reason", "length"),)] == 1


@pytest.mark.parametrize(
    ("error", "reason"), [(Busy("full"), "busy"), (NotReady("no"), "not_ready"), (ValueError("x"), "invalid")]
)
def test_refusals(error: Exception, reason: str) -> None:
    async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        raise error
        yield

    with client(FakeEngine(script)) as ours:
        assert "error" in ask(ours).json()
        found = scraped(ours)
    assert found["fastslow:refusals_total", (("reason", reason),)] == 1
    assert not any(name == "vllm:request_success_total" for name, _ in found)


def test_what_the_server_itself_refuses_is_counted() -> None:
    caller = Caller("bot", "m", KeyLimits(modes=["fast"], requests_per_minute=3))
    with client() as ours, patch.object(RequestAccess, "_caller", return_value=caller):
        for fields in ({"mode": "deep"}, {"top_p": 7}, {"mode": "fast"}, {}):
            ask(ours, **fields)
        found = scraped(ours)
    reasons = {labels[0][1]: n for (name, labels), n in found.items() if "refusals_total" in name}
    assert reasons == {"key_limit": 1, "invalid": 1, "rate_limit_exceeded": 1}


def test_names_of_clients_do_not_fill_the_figures() -> None:
    with client(engine := FakeEngine()) as ours:
        for n in range(3):
            ask(ours, mode={"base": "fast", "name": f"name {n}"}, speculation="off")
    modes: list[Any] = [asked.options.mode for asked in engine.asked]
    assert [mode["name"] for mode in modes] == ["custom"] * 3
    names = ["suffix", "off", "suffix|head", "suffix|head|ngram", "ngram+self+suffix"]
    scripts = [output(drafter=name) for name in names]

    async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        yield Piece(output=scripts.pop())

    with client(FakeEngine(script)) as ours:
        for _ in names:
            ask(ours)
        found = scraped(ours)
    drafters = {dict(labels)["drafter"] for name, labels in found if name == "fastslow:answers_total"}
    assert drafters == {"suffix", "off", "suffix|head", "several"}


def test_what_fails_in_the_middle_counts_what_was_sent() -> None:
    async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        yield Piece(token_ids=[1, 2, 3])
        raise RuntimeError("it broke")

    ours = client(FakeEngine(script))
    assert ask(ours).status_code == 500
    found = scraped(ours)
    assert found["vllm:generation_tokens_total", ()] == 3
    assert found["vllm:request_success_total", (("finished_reason", "error"),)] == 1
    assert found["vllm:time_to_first_token_seconds_count", ()] == 1
    assert found["fastslow:http_requests_total", (("method", "POST"), ("route", ASK), ("status", "500"))] == 1


def test_a_client_that_left_is_an_abort() -> None:
    ended = []

    async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        try:
            while True:
                yield Piece(text="x", token_ids=[1])
                await asyncio.sleep(0)
        finally:
            ended.append(request.prompt)

    ours = client(FakeEngine(script))
    asyncio.run(call(ours.app, "POST", ASK, b'{"prompt": "x", "stream": true}', leave_after=6))
    found = scraped(ours)
    assert ended == ["x"] and found["vllm:request_success_total", (("finished_reason", "abort"),)] == 1
    assert found["fastslow:clients_left_total", ()] == 1 and found["vllm:generation_tokens_total", ()] >= 4


def test_an_engine_that_begins_anew_or_is_not_there_takes_nothing_back() -> None:
    async def none() -> Any:
        raise NotReady("it starts")

    engine = FakeEngine()
    with client(engine) as ours:
        before = scraped(ours)
        engine.figures["steps"] = 2  # a new engine, since the last look
        engine.restarts = 1
        after = scraped(ours)
        engine.stats = none  # type: ignore[method-assign]
        last = scraped(ours)
    assert [one["fastslow:engine_steps_total", ()] for one in (before, after, last)] == [5, 7, 7]
    assert after["fastslow:engine_restarts_total", ()] == 1
    assert last["fastslow:engine_up", ()] == 0 and ("vllm:num_requests_running", ()) not in last


def test_names_are_those_of_the_table_and_formats_are_what_is_asked_for() -> None:
    families = {metric.name: metric for metric in TABLE}
    assert len(families) == len(TABLE)
    with client(FakeEngine(), metrics_by_key=True) as ours:
        ask(ours)
        assert ours.get("/metrics").headers["content-type"].startswith("text/plain; version=")
        accept = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
        other = ours.get("/metrics", headers=accept)
        assert other.headers["content-type"].startswith("application/openmetrics-text; version=1")
        ours.get("/metrics", headers={"accept": "nonsense;;;,"}).raise_for_status()
        for version in ("0.0.1", "1.0.0;escaping=underscores", "1.0.0;escaping=allow-utf-8"):
            accept = {"accept": f"application/openmetrics-text;version={version}"}
            assert "vllm:prompt_tokens_total{" in ours.get("/metrics", headers=accept).text
    found = {family.name: family for family in parse_openmetrics(other.text)}  # type: ignore[no-untyped-call]
    assert set(found) == set(families)
    for name, family in found.items():
        assert family.type == families[name].type and family.documentation == families[name].help
        for sample in family.samples:
            extra = {"le"} & set(sample.labels)
            assert set(sample.labels) - extra == {"model_name", *families[name].labels}


def test_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_VALUES", 5)

    async def script(request: GenerateRequest) -> AsyncGenerator[Piece, None]:
        yield Piece(output=output(drafter=str(request.prompt), by_drafter={}))

    with client(FakeEngine(script)) as ours:
        for n in range(10):
            ask(ours, f"d{n}")
            ours.get(f"/not-there/{n}")
        found = scraped(ours)

    def values(series: str, label: str) -> set[str]:
        return {dict(labels)[label] for name, labels in found if name == series}

    drafters = values("fastslow:steps_total", "drafter")
    assert len(drafters) == 6 and "other" in drafters
    assert values("fastslow:http_requests_total", "route") == {ASK, "unmatched"}
