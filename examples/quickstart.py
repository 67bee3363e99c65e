"""A question in two modes, then a batch in which every request has its own mode and drafter.

Run: python examples/quickstart.py [MODEL]
"""

from __future__ import annotations

import sys

from fastslow import LLM, SamplingParams, Speculation

model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-moge"

with LLM(model) as llm:
    for mode in ("fast", "deep"):
        print(f"--- {mode}")
        for piece in llm.stream_chat(
            "Why is the sky blue?", SamplingParams(max_tokens=64), mode=mode
        ):
            print(piece.text, end="", flush=True)
            if piece.output is not None:
                print(f"\n[{piece.output.metrics.tokens_per_step:.2f} tokens per step]")

    print("--- a batch")
    outputs = llm.generate(
        ["The capital of France is", "One, two, three, one, two, three, one, two,"],
        SamplingParams(max_tokens=16),
        mode=["deep", "fast"],
        speculation=["off", Speculation(drafter="ngram", nodes=6)],
    )
    for output in outputs:
        print(f"{output.prompt}|{output.text!r} ({output.metrics.drafter})")
