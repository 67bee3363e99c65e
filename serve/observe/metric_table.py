"""Every metric of /metrics, in one table: name, type, what it says, labels.

Names that begin with vllm: are those of vLLM, with its meaning, so that dashboards and routers made for it read
this server. Those that begin with fastslow: are our own. Prometheus adds _total to counters. All have the label
model_name besides those that stand here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

TOKEN_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 10.0),
)
FIRST_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0),
)
WHOLE_SECONDS = (
    *(0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0),
)


class Metric(NamedTuple):
    name: str
    type: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, "gauge", help, labels)


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, "counter", help, labels)


def _histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(name, "histogram", help, labels, buckets)


TABLE = (
    # the engine is asked at each scrape
    _gauge("vllm:num_requests_running", "Requests in the present step."),
    _gauge("vllm:num_requests_waiting", "Requests in the queue."),
    _gauge("vllm:kv_cache_usage_perc", "Share of the KV pages in use, 0 to 1."),
    _gauge("fastslow:engine_up", "1 while the engine takes requests, else 0."),
    _counter("fastslow:engine_restarts", "Times that the engine began anew."),
    _counter(
        "fastslow:retried_asks",
        "Asks whose replica ended before anything was streamed: another one was asked.",
    ),
    _counter(
        "fastslow:continued_answers",
        "Answers whose replica ended in the middle of a stream: another one went on.",
    ),
    _counter(
        "fastslow:given_up_answers", "Answers whose replica ended, and that ended by an error."
    ),
    _counter("fastslow:engine_steps", "Forward passes of the engine."),
    _gauge("fastslow:kv_pages", "KV pages: used, cached, free.", "state"),
    _gauge(
        "fastslow:kv_pages_pinned",
        "KV pages that warm prefixes keep; where they are not in use, they count as used.",
    ),
    _gauge(
        "fastslow:replicas",
        "Replicas of the engine, where there are some: running, starting.",
        "state",
    ),
    _counter(
        "fastslow:replicas_gone",
        "Replicas that ended or no longer answer, those that were not needed any more among them.",
    ),
    _gauge(
        "fastslow:replica_requests_running", "Requests in the present step of a replica.", "replica"
    ),
    _gauge("fastslow:replica_requests_waiting", "Requests in the queue of a replica.", "replica"),
    _gauge("fastslow:replica_kv_pages_used", "KV pages of a replica in use.", "replica"),
    _gauge("fastslow:replica_kv_pages", "KV pages of a replica.", "replica"),
    _counter(
        "fastslow:evicted_pages",
        "Pages of the prefix cache that others needed, by the mode that had read them.",
        "mode",
    ),
    # counted at the end of an answer
    _counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    _counter("vllm:prefix_cache_hits", "Of these, found."),
    _counter("vllm:prompt_tokens", "Prompt tokens."),
    _counter("vllm:prompt_tokens_cached", "Prompt tokens found in the prefix cache."),
    _counter("vllm:generation_tokens", "Tokens of answers."),
    _counter("vllm:num_preemptions", "Times that an answer gave up its KV for others."),
    _counter(
        "vllm:request_success",
        "Answers by their end: stop, length, abort, error.",
        "finished_reason",
    ),
    _histogram(
        "vllm:time_to_first_token_seconds",
        "From the HTTP request to the first token.",
        FIRST_SECONDS,
    ),
    _histogram(
        "vllm:inter_token_latency_seconds",
        "Between one step's tokens of an answer and the next step's.",
        TOKEN_SECONDS,
    ),
    _histogram(
        "vllm:request_time_per_output_token_seconds",
        "Mean time of each token after the first, one value an answer.",
        TOKEN_SECONDS,
    ),
    _histogram(
        "vllm:e2e_request_latency_seconds",
        "From the HTTP request to the last token.",
        WHOLE_SECONDS,
    ),
    _histogram(
        "vllm:request_queue_time_seconds",
        "From the call to the start of the first step.",
        WHOLE_SECONDS,
    ),
    _counter("vllm:spec_decode_num_drafts", "Steps of answers that drafted."),
    _counter("vllm:spec_decode_num_draft_tokens", "Drafted tokens that were verified."),
    _counter("vllm:spec_decode_num_accepted_tokens", "Of these, accepted."),
    _counter(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "Accepted tokens by their place in the draft, from 0.",
        "position",
    ),
    _counter("fastslow:answers", "Answers.", "mode", "drafter"),
    _counter("fastslow:tokens", "Tokens of answers.", "mode", "drafter"),
    _counter(
        "fastslow:steps",
        "Steps that gave an answer tokens: tokens by steps are the tokens per step.",
        "mode",
        "drafter",
    ),
    _counter("fastslow:draft_tokens", "Drafted tokens that were verified.", "mode", "drafter"),
    _counter("fastslow:accepted_tokens", "Of these, accepted.", "mode", "drafter"),
    _counter(
        "fastslow:accepted_tokens_per_position",
        "Accepted tokens by their place in the draft, from 0.",
        "drafter",
        "position",
    ),
    _counter("fastslow:cached_tokens", "Prompt tokens found in the prefix cache.", "mode"),
    _counter("fastslow:prompt_tokens", "Prompt tokens.", "mode"),
    _counter("fastslow:prefix_hits", "Prompts of which the prefix cache held a part.", "mode"),
    _histogram(
        "fastslow:time_to_first_token_seconds",
        "From the HTTP request to the first token.",
        FIRST_SECONDS,
        "mode",
    ),
    _histogram(
        "fastslow:time_per_output_token_seconds",
        "Mean time of each token after the first, one value an answer.",
        TOKEN_SECONDS,
        "mode",
    ),
    _counter("fastslow:escalations", "Answers that went on in another mode.", "mode"),
    _counter("fastslow:thinking_tokens", "Tokens between the thinking tags.", "mode"),
    _counter(
        "fastslow:thinking_ended",
        "Thoughts by what ended them: model, budget, loop, settled, length.",
        "reason",
    ),
    _counter(
        "fastslow:targets",
        "Answers with a latency target, and whether it was kept.",
        "mode",
        "kept",
    ),
    _counter("fastslow:refusals", "Asks without an answer: busy, not_ready, invalid.", "reason"),
    # counted at the end of a request
    _counter(
        "fastslow:http_requests",
        "HTTP requests; status 0: nothing was sent.",
        "method",
        "route",
        "status",
    ),
    _gauge("fastslow:http_requests_running", "Requests that hold a place."),
    _counter("fastslow:clients_left", "Requests whose client went away before the end."),
    _counter("fastslow:key_requests", "Requests by API key; only where it is asked for.", "key"),
    _counter(
        "fastslow:key_tokens",
        "Tokens of prompts and answers by API key; only where it is asked for.",
        "key",
        "kind",
    ),
)
