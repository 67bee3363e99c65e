"""A trace from the request log of `fastslow serve --log-format json --log-texts`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fastslow.serve.observe.request_log import MOST_SHOWN
from fastslow.tools.simulate.cluster import CHARACTERS
from fastslow.tools.simulate.trace import Pieces, TracedRequest, json_lines

BLOCK = 256  # characters of a prompt that make one piece


def read_log(
    path: Path, latency_ms: float | None = None
) -> tuple[list[TracedRequest], Counter[str]]:
    """The requests in a server's log, by arrival from 0 on; and what it lacks -> how many lines.

    A request's line is written at its end, so that it came its `seconds` earlier.

    latency_ms: the target of requests in mode fast, which the log does not have. All others count as deep.

    ValueError: it cannot be read, a line is no JSON, or no request can be used.
    """
    lacks, timed = Counter[str](), []
    for number, line in json_lines(path):
        try:
            if not _answered(line):
                lacks["lines left out, which are of no request with one answer"] += 1
                continue
            arrival = datetime.fromisoformat(line["time"]).timestamp() - line["seconds"]
            request = _request(line, f"#{number}", latency_ms)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"{path}, line {number}: not a server's line: {error}") from None
        lacks["prompts not in the log (--log-texts), which share nothing"] += not request.prefix
        timed.append((arrival, request))
    if not timed:
        raise ValueError(
            f"{path} has no answered request: the server has to write JSON (--log-format json)"
        )
    timed.sort(key=lambda one: one[0])
    begin = timed[0][0]
    arrivals = [(round(arrival - begin, 4), request) for arrival, request in timed]
    return [r.model_copy(update={"arrival": arrival}) for arrival, r in arrivals], +lacks


def _answered(line: Mapping[str, Any]) -> bool:
    """Whether it is of a request that can be repeated."""
    one = all(len(line.get(name, ())) == 1 for name in ("answers", "finish_reasons"))
    there = all(map(line.get, ("mode", "prompt_tokens", "tokens")))
    return line.get("message") == "request" and "first_token_seconds" in line and one and there


def _request(line: Mapping[str, Any], id: str, latency_ms: float | None) -> TracedRequest:
    """A request of the log; it arrives at 0."""
    per_step = max(1.0, line["tokens_per_step"])
    return TracedRequest(
        arrival=0.0,
        mode=line["mode"],
        prompt_tokens=line["prompt_tokens"],
        answer_tokens=line["tokens"],
        id=id,
        deep=line["mode"] != "fast",
        prefix=_prefix(line.get("prompts"), line["prompt_tokens"]),
        latency_ms=latency_ms if line["mode"] == "fast" else None,
        tokens_per_step=per_step,
        rows_per_step=1 + line.get("drafted", 0) / max(1.0, line["tokens"] / per_step),
        first_seconds=line["first_token_seconds"],
        end_seconds=line["seconds"],
        cached_tokens=line.get("cached_tokens"),
    )


def _prefix(texts: Any, tokens: int) -> Pieces:
    """Pieces by the prompt's text, where it was logged. Of a long prompt the log has the beginning only."""
    text = str(texts[0]) if isinstance(texts, list) and len(texts) == 1 else ""
    if not text:
        return ()
    whole = len(text) < MOST_SHOWN
    each = max(1, round(BLOCK * tokens / len(text)) if whole else BLOCK // CHARACTERS)
    pieces, digest = [], b""
    for start in range(0, len(text) - BLOCK + 1, BLOCK):
        block = text[start : start + BLOCK].encode("utf-8", "surrogatepass")
        digest = blake2b(digest + block, digest_size=8).digest()
        pieces.append((digest.hex(), each))
    return tuple(pieces[: (tokens - 1) // each])
