"""Tokens per second of each mode and drafter at batch 1, interleaved in one run.

    python benchmarks/modes.py [--model smollm2-moge] [--dense smollm2] [--tokens 48] [--repeat 3]

The figure is the median of the repeats, the first token not counted.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from typing import Any

import torch
from figures import options, show, write

from fastslow import LLM, Mode, SamplingParams, Speculation
from fastslow.engine.model.tensors import active_parameters

PROMPT = "Explain how rain forms, and then summarise your explanation."


def main() -> None:
    parser = options(__doc__, "out", model="smollm2-moge", dtype="bfloat16", tokens=48, repeat=3)
    parser.add_argument("--dense", help="a dense model to measure beside it, plain")
    args = parser.parse_args()
    sampling = SamplingParams(max_tokens=args.tokens, ignore_eos=True)
    with ExitStack() as stack:
        llm = stack.enter_context(LLM(args.model, dtype=args.dtype))
        modes: dict[str, Mode] = dict(llm.modes)
        drafters = ["off", "ngram"]
        if every := llm.model.config.groups:
            modes["two groups"] = Mode(name="two groups", groups=min(2, every))
            modes["shared only"] = Mode(name="shared only", groups=0)
            drafters.append("self")
        jobs = [(llm, name, mode, d) for name, mode in modes.items() for d in drafters]
        if args.dense:
            dense = stack.enter_context(LLM(args.dense, dtype=args.dtype))
            jobs.insert(0, (dense, "dense", Mode(), "off"))
        speeds: list[list[float]] = [[] for _ in jobs]
        for turn in range(args.repeat + 1):  # the first warms up
            for (model, _, mode, drafter), speed in zip(jobs, speeds, strict=True):
                wish = Speculation(drafter=drafter, nodes=0 if drafter == "off" else 3)
                out = model.chat(PROMPT, sampling, mode=mode, speculation=wish)
                speed += [out.metrics.tokens_per_second] if turn else []
        figures: list[dict[str, Any]] = []
        for (model, name, mode, drafter), speed in zip(jobs, speeds, strict=True):
            active = active_parameters(model.model.config, mode.groups)
            figures.append({"mode": name, "active": active, "drafter": drafter, "rates": speed})
    rows = []
    for f in figures:
        weights, rate = f"{f['active'] / 1e6:.1f} M", f"{statistics.median(f['rates']):.1f}"
        rows.append([f["mode"], weights, f["drafter"], rate])
    note = f"{torch.get_num_threads()} threads, {args.dtype}, {args.model}"
    show(["mode", "active", "drafter", "tokens/s"], rows, note)
    write(args.out, model=args.model, figures=figures)


if __name__ == "__main__":
    main()
