"""A client of a server, as a program: prints each piece of an answer with the time it came.

Run: python examples/cluster/client.py URL TOKENS QUESTION
"""

from __future__ import annotations

import json
import sys
import time

import httpx


def main() -> None:
    url, tokens, question = sys.argv[1:]
    asked = {
        "model": httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]["id"],
        "messages": [{"role": "user", "content": question}],
        "mode": "fast",
        "temperature": 0,
        "max_tokens": int(tokens),
        "ignore_eos": True,
        "stream": True,
    }
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=asked, timeout=600) as answer:
        if answer.status_code != httpx.codes.OK:
            sys.exit(f"HTTP {answer.status_code}: {answer.read().decode()}")
        for line in answer.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                sys.exit(f"the answer ended with an error: {event['error']['message']}")
            for choice in event["choices"]:
                text = choice["delta"].get("content") or ""
                print(json.dumps({"at": time.time(), "text": text}), flush=True)


if __name__ == "__main__":
    main()
