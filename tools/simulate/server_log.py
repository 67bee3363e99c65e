"""A trace from the request log of `fastslow serve --log-format json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from fastslow.serve.observe.request_log import MOST_SHOWN
from fastslow.tools.simulate.cluster import CHARACTERS
from fastslow.tools.simulate.trace import Pieces, TracedRequest, json_lines

BLOCK = 256  # characters of a prompt that make one piece


@dataclass(slots=True)
class LoggedTrace:
    """A trace, and what the log did not have.

    Attributes:
        requests: by arrival; the first one comes at 0.
        left_out: why lines were left out -> how many.
        notes: one sentence for each thing that had to be guessed.
    """

    requests: list[TracedRequest] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: dict[str, None] = field(default_factory=dict)


def read_log(
    path: Path, quick: frozenset[str] = frozenset({"fast"}), latency_ms: float | None = None
) -> LoggedTrace:
    """The requests in a server's log.

    A request's line is written at its end, so that it came its `seconds` earlier.

    Args:
        path: JSON lines.
        quick: modes that do not think; all others count as deep.
        latency_ms: the target of requests of these modes, which the log does not have.

    Raises:
        ValueError: it cannot be read, a line is no JSON, or no request can be used.
    """
    deep = f"modes that count as deep: all but {', '.join(sorted(quick))}"
    notes = dict.fromkeys(("max_tokens are not in a log", deep))
    if latency_ms is None:
        notes["latency targets are not in a log: none is taken (--latency-ms)"] = None
    found = LoggedTrace(notes=notes)
    timed: list[tuple[float, TracedRequest]] = []
    for number, line in json_lines(path):
        try:
            if reason := _unusable(line):
                found.left_out[reason] += 1
                continue
            arrival = datetime.fromisoformat(line["time"]).timestamp() - line["seconds"]
            request = _request(line, line["mode"] not in quick, latency_ms, found.notes)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"{path}, line {number}: not a server's line: {error}") from None
        timed.append((arrival, request))
    if not timed:
        raise ValueError(
            f"{path} has no answered request: the server has to write JSON (--log-format json)"
        )
    timed.sort(key=lambda one: one[0])
    for place, (arrival, request) in enumerate(timed):
        own = {"id": f"{request.id}#{place}", "arrival": round(arrival - timed[0][0], 4)}
        found.requests.append(request.model_copy(update=own))
    return found


def _unusable(line: Mapping[str, Any]) -> str | None:
    """Why a request cannot be repeated."""
    if line.get("message") != "request":
        return "not of a request"
    if "mode" not in line or "first_token_seconds" not in line:
        return "without an answer"
    if len(line.get("answers", ())) != 1 or len(line.get("finish_reasons", ())) != 1:
        return "with several answers"
    if not line.get("prompt_tokens") or not line.get("tokens"):
        return "without tokens"
    return None


def _request(
    line: Mapping[str, Any], deep: bool, latency_ms: float | None, notes: dict[str, None]
) -> TracedRequest:
    """A request of the log; it arrives at 0."""
    per_step = max(1.0, line["tokens_per_step"])
    return TracedRequest(
        arrival=0.0,
        mode=line["mode"],
        prompt_tokens=line["prompt_tokens"],
        answer_tokens=line["tokens"],
        id=str(line["answers"][0])[:150],
        deep=deep,
        prefix=_prefix(line, notes),
        latency_ms=None if deep else latency_ms,
        tokens_per_step=per_step,
        rows_per_step=1 + line.get("drafted", 0) / max(1.0, line["tokens"] / per_step),
        first_seconds=line["first_token_seconds"],
        end_seconds=line["seconds"],
        cached_tokens=line.get("cached_tokens"),
    )


def _prefix(line: Mapping[str, Any], notes: dict[str, None]) -> Pieces:
    """Pieces by the prompt's text where it was logged, else a guess."""
    texts, tokens = line.get("prompts"), line["prompt_tokens"]
    if isinstance(texts, list) and len(texts) == 1 and texts[0]:
        text = str(texts[0])
        whole = len(text) < MOST_SHOWN
        if not whole:
            notes[f"prompts are known up to {MOST_SHOWN} characters: the rest is not shared"] = None
        each = max(1, round(BLOCK * tokens / len(text)) if whole else BLOCK // CHARACTERS)
        pieces, digest = [], b""
        for start in range(0, len(text) - BLOCK + 1, BLOCK):
            block = text[start : start + BLOCK].encode("utf-8", "surrogatepass")
            digest = blake2b(digest + block, digest_size=8).digest()
            pieces.append((digest.hex(), each))
        return tuple(pieces[: (tokens - 1) // each])
    cached = min(line.get("cached_tokens") or 0, tokens - 1)
    if not cached:
        return ()
    notes[
        "prompts are not in this log (--log-texts): requests of one key are taken to begin alike, for as many "
        "tokens as were found in the cache"
    ] = None
    return ((f"key {line.get('key', '')}"[:200], cached),)
