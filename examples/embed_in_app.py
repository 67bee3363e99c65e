"""An `LLM` inside an application: several threads ask it, one gives up, and what does not fit is refused.

Run: python examples/embed_in_app.py [MODEL]
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

from fastslow import LLM, Mode, SamplingParams

USERS = {
    "Ada": "What is a router in a network?",
    "Ben": "Name three kinds of bread.",
    "Cem": "Why do leaves fall in autumn?",
}
PATIENCE = 8  # tokens after which the impatient user leaves


def ask(llm: LLM, user: str, question: str, tokens: int) -> str:
    """Answer one user of the application; any thread may call this."""
    out = llm.chat(question, SamplingParams(max_tokens=tokens), mode="auto")
    first = f"first token after {1000 * out.metrics.ttft:.0f} ms"
    return f"{user}: {out.text.strip()[:60]!r} ({out.metrics.mode}, {first})"


def leave_early(llm: LLM, tokens: int) -> int:
    """A user who closes the window: leaving the stream cancels the request."""
    seen = 0
    for piece in llm.stream_chat("Tell me a long story.", SamplingParams(max_tokens=50 * tokens)):
        seen += len(piece.token_ids)
        if seen >= PATIENCE:
            break
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-moge", help="a folder or a name")
    parser.add_argument("--tokens", type=int, default=24, help="of an answer (24)")
    options = parser.parse_args()
    with LLM(options.model) as llm:
        started = time.monotonic()
        with ThreadPoolExecutor() as pool:
            left = pool.submit(leave_early, llm, options.tokens)
            jobs = [pool.submit(ask, llm, *user, options.tokens) for user in USERS.items()]
            for job in jobs:
                print(job.result())
            print(f"Dan left after {left.result()} tokens; nothing of his request is left")
        print(f"all in {time.monotonic() - started:.1f} s")
        try:
            llm.chat("Hello", mode=Mode(groups=99))
        except ValueError as error:
            print(f"refused: {error}")


if __name__ == "__main__":
    main()
