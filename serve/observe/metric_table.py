"""Every metric of /metrics, in one table.

Names that begin with vllm: are those of vLLM, with its meaning, so that dashboards and routers made for it read
this server. Those that begin with fastslow: are our own. Prometheus adds _total to counters. All have the label
model_name besides those that stand here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

BUCKETS = {
    "token": (
        *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
        *(1.0, 2.5, 5.0, 10.0),
    ),
    "first": (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
        *(10.0, 20.0, 40.0, 80.0, 160.0),
    ),
    "whole": (
        *(0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0),
        *(60.0, 120.0, 240.0, 480.0, 960.0),
    ),
}
LINE = re.compile(
    r"(gauge|counter|histogram)(?::(\w+))? ([\w:]+)(?:\{([\w,]+)\})?(?: (\w+)\.(\w+))?  (.+)"
)

# type, of histograms the buckets, name, labels, where the value is, what it says
TEXT = """\
# the engine is looked at in each scrape
gauge vllm:num_requests_running stats.running  Requests in the present step.
gauge vllm:num_requests_waiting stats.waiting  Requests in the queue.
gauge vllm:kv_cache_usage_perc  Share of the KV pages in use, 0 to 1.
gauge fastslow:engine_up  1 while the engine takes requests, else 0.
counter fastslow:engine_restarts engine.restarts  Times that the engine began anew.
counter fastslow:retried_asks engine.retried  Requests whose replica ended before anything was streamed: another replica took them.
counter fastslow:continued_answers engine.continued  Answers whose replica ended in the middle of a stream: another replica continued them.
counter fastslow:given_up_answers engine.given_up  Answers whose replica ended, and that ended by an error.
counter fastslow:log_lines_lost  Lines of the log that could not be written, as onto a full disk.
counter fastslow:engine_steps stats.steps  Forward passes of the engine.
gauge fastslow:kv_pages{state}  KV pages: used, cached, free.
gauge fastslow:kv_pages_pinned stats.pages_pinned  KV pages that warm prefixes keep; where they are not in use, they count as used.
gauge fastslow:running_states{state}  Places of running states, where the model has some: used by requests, cached as snapshots, free.
gauge fastslow:running_state_bytes stats.state_bytes  Bytes of running states in use and of snapshots.
gauge fastslow:window_pages{state}  Pages of layers with windows, where these have their own: used, cached, free.
gauge fastslow:replicas{state}  Replicas of the engine, where there are some: running, starting.
counter fastslow:replicas_gone stats.replicas_gone  Replicas that ended or no longer answer, those that were not needed any more among them.
gauge fastslow:replica_requests_running{replica} replica.running  Requests in the present step of a replica.
gauge fastslow:replica_requests_waiting{replica} replica.waiting  Requests in the queue of a replica.
gauge fastslow:replica_kv_pages_used{replica} replica.pages_used  KV pages of a replica in use.
gauge fastslow:replica_kv_pages{replica} replica.pages  KV pages of a replica.
counter fastslow:evicted_pages{mode}  Pages of the prefix cache that others needed, by the mode that had read them.
# counted at the end of an answer
counter vllm:prefix_cache_queries prompt.tokens  Prompt tokens looked up in the prefix cache.
counter vllm:prefix_cache_hits prompt.cached  Of these, found.
counter vllm:prompt_tokens prompt.tokens  Prompt tokens.
counter vllm:prompt_tokens_cached prompt.cached  Prompt tokens found in the prefix cache.
counter vllm:generation_tokens choice.tokens  Tokens of answers.
counter vllm:num_preemptions choice.preemptions  Times that an answer gave up its KV for others.
counter vllm:request_success{finished_reason}  Answers by their end: stop, length, abort, error.
histogram:first vllm:time_to_first_token_seconds  From the HTTP request to the first token.
histogram:token vllm:inter_token_latency_seconds  Between one step's tokens of an answer and the next step's.
histogram:token vllm:request_time_per_output_token_seconds  Mean time of each later token, one value an answer.
histogram:whole vllm:e2e_request_latency_seconds  From the HTTP request to the last token.
histogram:whole vllm:request_queue_time_seconds  From the call to the start of the first step.
counter vllm:spec_decode_num_drafts  Steps of answers that drafted.
counter vllm:spec_decode_num_draft_tokens choice.drafted  Drafted tokens that were verified.
counter vllm:spec_decode_num_accepted_tokens choice.accepted  Of these, accepted.
counter vllm:spec_decode_num_accepted_tokens_per_pos{position}  Accepted tokens by their place in the draft, from 0.
counter fastslow:answers{mode,drafter}  Answers.
counter fastslow:tokens{mode,drafter} choice.tokens  Tokens of answers.
counter fastslow:steps{mode,drafter} choice.steps  Steps that gave an answer tokens: tokens by steps are the tokens per step.
counter fastslow:draft_tokens{mode,drafter}  Drafted tokens that were verified.
counter fastslow:accepted_tokens{mode,drafter}  Of these, accepted.
counter fastslow:accepted_tokens_per_position{drafter,position}  Accepted tokens by their place in the draft, from 0.
counter fastslow:cached_tokens{mode} prompt.cached  Prompt tokens found in the prefix cache.
counter fastslow:prompt_tokens{mode} prompt.tokens  Prompt tokens.
counter fastslow:prefix_hits{mode} prompt.hit  Prompts of which the prefix cache held a part.
histogram:first fastslow:time_to_first_token_seconds{mode}  From the HTTP request to the first token.
histogram:token fastslow:time_per_output_token_seconds{mode}  Mean time of each later token, one value an answer.
counter fastslow:escalations{mode}  Answers that continued in another mode.
counter fastslow:thinking_tokens{mode} choice.thinking_tokens  Tokens between the thinking tags.
counter fastslow:thinking_ended{reason}  Thoughts by what ended them: model, budget, turn, room, loop, confident, caller, length.
counter fastslow:probe_rows{mode} choice.probe_rows  Rows that asked for the answer before the thought was over.
counter fastslow:targets{mode,kept}  Answers with a latency target, and whether it was kept.
counter fastslow:refusals{reason}  Requests without an answer: busy, not_ready, invalid, or the code of the error, as key_limit and rate_limit_exceeded.
# counted at the end of a request
counter fastslow:http_requests{method,route,status}  HTTP requests; status 0: nothing was sent.
gauge fastslow:http_requests_running  Requests that hold a place.
counter fastslow:clients_left  Requests whose client went away before the end.
counter fastslow:key_requests{key}  Requests by API key; only with --metrics-by-key.
counter fastslow:key_tokens{key,kind}  Tokens of prompts and answers by API key; only with --metrics-by-key.
"""


class Metric(NamedTuple):
    """`field` of `source` is the value, where that is all: of the engine, its stats, a replica, a prompt, an answer."""

    name: str
    type: str  # gauge, counter, histogram
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...]
    source: str
    field: str


def _metric(line: str) -> Metric:
    found = LINE.fullmatch(line)
    assert found is not None, line
    kind, buckets, name, given, source, field, help = found.groups(default="")
    labels = tuple(filter(None, given.split(",")))
    return Metric(name, kind, help, labels, BUCKETS.get(buckets, ()), source, field)


TABLE = tuple(_metric(line) for line in TEXT.splitlines() if not line.startswith("#"))
