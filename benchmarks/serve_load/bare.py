"""The engine without a server, in a separate process: asks in, times out, one JSON line each.

bare.py '{"model": ..., "options": {...}}'
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from fastslow import LLM, SamplingParams


async def one_client(
    llm: LLM, number: int, prompts: list[str], asked: dict[str, Any]
) -> list[dict[str, Any]]:
    """Prompts one after the other."""
    found = []
    await asyncio.sleep(number * asked["apart"])
    sampling = SamplingParams(max_tokens=asked["tokens"], ignore_eos=True, temperature=0)
    for prompt in prompts:
        begin, first, tokens = time.perf_counter(), 0.0, 0
        handle = llm.submit(
            [{"role": "user", "content": prompt}],
            sampling,
            mode=asked["mode"],
            speculation=asked["speculation"],
        )
        async for piece in handle:
            if not tokens and piece.token_ids:
                first = time.perf_counter() - begin
            tokens += len(piece.token_ids)
        waited = (await handle).metrics.ttft
        found.append({"first": first, "waited": waited, "tokens": tokens})
    return found


async def measure(llm: LLM, asked: dict[str, Any]) -> dict[str, Any]:
    begin = time.perf_counter()
    clients = [one_client(llm, n, prompts, asked) for n, prompts in enumerate(asked["clients"])]
    answers = [answer for found in await asyncio.gather(*clients) for answer in found]
    return {"seconds": time.perf_counter() - begin, "answers": answers}


def main() -> None:
    settings = json.loads(sys.argv[1])
    with LLM(settings["model"], **settings["options"]) as llm:
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(asyncio.run(measure(llm, json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
