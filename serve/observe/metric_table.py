"""Every metric of /metrics, in one table: name, type, labels, where its value is from, and what it tells.

Names that begin with vllm: are those of vLLM, with its meaning, so that dashboards and routers made for it read
this server. Those that begin with fastslow: are our own. Prometheus adds _total to counters. All have the label
model_name besides those that stand here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Type = Literal["gauge", "counter", "histogram"]
Source = Literal[
    "engine", "answer", "request"
]  # asked at each scrape; at an answer's end; at a request's end

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
    type: Type
    labels: tuple[str, ...]
    source: Source
    help: str
    buckets: tuple[float, ...] = ()


TABLE = (
    Metric("vllm:num_requests_running", "gauge", (), "engine", "Requests in the present step."),
    Metric("vllm:num_requests_waiting", "gauge", (), "engine", "Requests in the queue."),
    Metric(
        "vllm:kv_cache_usage_perc", "gauge", (), "engine", "Share of the KV pages in use, 0 to 1."
    ),
    Metric(
        "vllm:prefix_cache_queries",
        "counter",
        (),
        "answer",
        "Prompt tokens looked up in the prefix cache.",
    ),
    Metric("vllm:prefix_cache_hits", "counter", (), "answer", "Of these, found."),
    Metric("vllm:prompt_tokens", "counter", (), "answer", "Prompt tokens."),
    Metric(
        "vllm:prompt_tokens_cached",
        "counter",
        (),
        "answer",
        "Prompt tokens found in the prefix cache.",
    ),
    Metric("vllm:generation_tokens", "counter", (), "answer", "Tokens of answers."),
    Metric(
        "vllm:num_preemptions",
        "counter",
        (),
        "answer",
        "Times that an answer gave up its KV for others.",
    ),
    Metric(
        "vllm:request_success",
        "counter",
        ("finished_reason",),
        "answer",
        "Answers by their end: stop, length, abort, error.",
    ),
    Metric(
        "vllm:time_to_first_token_seconds",
        "histogram",
        (),
        "answer",
        "From the HTTP request to the first token.",
        FIRST_SECONDS,
    ),
    Metric(
        "vllm:inter_token_latency_seconds",
        "histogram",
        (),
        "answer",
        "Between one step's tokens of an answer and the next step's.",
        TOKEN_SECONDS,
    ),
    Metric(
        "vllm:request_time_per_output_token_seconds",
        "histogram",
        (),
        "answer",
        "Mean time of each token after the first, one value an answer.",
        TOKEN_SECONDS,
    ),
    Metric(
        "vllm:e2e_request_latency_seconds",
        "histogram",
        (),
        "answer",
        "From the HTTP request to the last token.",
        WHOLE_SECONDS,
    ),
    Metric(
        "vllm:request_queue_time_seconds",
        "histogram",
        (),
        "answer",
        "From the call to the start of the first step.",
        WHOLE_SECONDS,
    ),
    Metric(
        "vllm:spec_decode_num_drafts", "counter", (), "answer", "Steps of answers that drafted."
    ),
    Metric(
        "vllm:spec_decode_num_draft_tokens",
        "counter",
        (),
        "answer",
        "Drafted tokens that were verified.",
    ),
    Metric("vllm:spec_decode_num_accepted_tokens", "counter", (), "answer", "Of these, accepted."),
    Metric(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "counter",
        ("position",),
        "answer",
        "Accepted tokens by their place in the draft, from 0.",
    ),
    Metric(
        "fastslow:engine_up", "gauge", (), "engine", "1 while the engine takes requests, else 0."
    ),
    Metric(
        "fastslow:engine_restarts", "counter", (), "engine", "Times that the engine began anew."
    ),
    Metric(
        "fastslow:retried_asks",
        "counter",
        (),
        "engine",
        "Asks whose replica ended before anything was streamed: another one was asked.",
    ),
    Metric(
        "fastslow:continued_answers",
        "counter",
        (),
        "engine",
        "Answers whose replica ended in the middle of a stream: another one went on.",
    ),
    Metric(
        "fastslow:given_up_answers",
        "counter",
        (),
        "engine",
        "Answers whose replica ended, and that ended by an error.",
    ),
    Metric("fastslow:engine_steps", "counter", (), "engine", "Forward passes of the engine."),
    Metric("fastslow:kv_pages", "gauge", ("state",), "engine", "KV pages: used, cached, free."),
    Metric(
        "fastslow:kv_pages_pinned",
        "gauge",
        (),
        "engine",
        "KV pages that warm prefixes keep; where they are not in use, they count as used.",
    ),
    Metric(
        "fastslow:replicas",
        "gauge",
        ("state",),
        "engine",
        "Replicas of the engine, where there are some: running, starting.",
    ),
    Metric(
        "fastslow:replicas_gone",
        "counter",
        (),
        "engine",
        "Replicas that ended or no longer answer, those that were not needed any more among them.",
    ),
    Metric(
        "fastslow:replica_requests_running",
        "gauge",
        ("replica",),
        "engine",
        "Requests in the present step of a replica.",
    ),
    Metric(
        "fastslow:replica_requests_waiting",
        "gauge",
        ("replica",),
        "engine",
        "Requests in the queue of a replica.",
    ),
    Metric(
        "fastslow:replica_kv_pages_used",
        "gauge",
        ("replica",),
        "engine",
        "KV pages of a replica in use.",
    ),
    Metric("fastslow:replica_kv_pages", "gauge", ("replica",), "engine", "KV pages of a replica."),
    Metric(
        "fastslow:evicted_pages",
        "counter",
        ("mode",),
        "engine",
        "Pages of the prefix cache that others needed, by the mode that had read them.",
    ),
    Metric("fastslow:answers", "counter", ("mode", "drafter"), "answer", "Answers."),
    Metric("fastslow:tokens", "counter", ("mode", "drafter"), "answer", "Tokens of answers."),
    Metric(
        "fastslow:steps",
        "counter",
        ("mode", "drafter"),
        "answer",
        "Steps that gave an answer tokens: tokens by steps are the tokens per step.",
    ),
    Metric(
        "fastslow:draft_tokens",
        "counter",
        ("mode", "drafter"),
        "answer",
        "Drafted tokens that were verified.",
    ),
    Metric(
        "fastslow:accepted_tokens", "counter", ("mode", "drafter"), "answer", "Of these, accepted."
    ),
    Metric(
        "fastslow:accepted_tokens_per_position",
        "counter",
        ("drafter", "position"),
        "answer",
        "Accepted tokens by their place in the draft, from 0.",
    ),
    Metric(
        "fastslow:cached_tokens",
        "counter",
        ("mode",),
        "answer",
        "Prompt tokens found in the prefix cache.",
    ),
    Metric("fastslow:prompt_tokens", "counter", ("mode",), "answer", "Prompt tokens."),
    Metric(
        "fastslow:prefix_hits",
        "counter",
        ("mode",),
        "answer",
        "Prompts of which the prefix cache held a part.",
    ),
    Metric(
        "fastslow:time_to_first_token_seconds",
        "histogram",
        ("mode",),
        "answer",
        "From the HTTP request to the first token.",
        FIRST_SECONDS,
    ),
    Metric(
        "fastslow:time_per_output_token_seconds",
        "histogram",
        ("mode",),
        "answer",
        "Mean time of each token after the first, one value an answer.",
        TOKEN_SECONDS,
    ),
    Metric(
        "fastslow:escalations",
        "counter",
        ("mode",),
        "answer",
        "Answers that went on in another mode.",
    ),
    Metric(
        "fastslow:thinking_tokens",
        "counter",
        ("mode",),
        "answer",
        "Tokens between the thinking tags.",
    ),
    Metric(
        "fastslow:thinking_ended",
        "counter",
        ("reason",),
        "answer",
        "Thoughts by what ended them: model, budget, loop, settled, length.",
    ),
    Metric(
        "fastslow:targets",
        "counter",
        ("mode", "kept"),
        "answer",
        "Answers with a latency target, and whether it was kept.",
    ),
    Metric(
        "fastslow:refusals",
        "counter",
        ("reason",),
        "answer",
        "Asks without an answer: busy, not_ready, invalid.",
    ),
    Metric(
        "fastslow:http_requests",
        "counter",
        ("method", "route", "status"),
        "request",
        "HTTP requests; status 0: nothing was sent.",
    ),
    Metric("fastslow:http_requests_running", "gauge", (), "request", "Requests that hold a place."),
    Metric(
        "fastslow:clients_left",
        "counter",
        (),
        "request",
        "Requests whose client went away before the end.",
    ),
    Metric(
        "fastslow:log_lines_lost",
        "counter",
        (),
        "request",
        "Log lines that could not be written.",
    ),
    Metric(
        "fastslow:key_requests",
        "counter",
        ("key",),
        "request",
        "Requests by API key; only where it is asked for.",
    ),
    Metric(
        "fastslow:key_tokens",
        "counter",
        ("key", "kind"),
        "request",
        "Tokens of prompts and answers by API key; only where it is asked for.",
    ),
)
