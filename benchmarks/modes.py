"""Tokens per second of each mode and drafter at batch 1, interleaved in one run.

    python benchmarks/modes.py [--model smollm2-moge] [--dense smollm2] [--tokens 48] [--repeat 3]

The figure is the median of the repeats, the first token not counted.
"""

from __future__ import annotations

import statistics

import torch
from figures import options

from fastslow import LLM, Mode, SamplingParams, Speculation
from fastslow.engine.model.tensors import active_parameters

PROMPT = "Explain how rain forms, and then summarise your explanation."


def main() -> None:
    parser = options(__doc__, model="smollm2-moge", dtype="bfloat16", tokens=48, repeat=3)
    parser.add_argument("--dense", help="a dense model to measure beside it, plain")
    args = parser.parse_args()

    llm = LLM(args.model, dtype=args.dtype)
    config = llm.model.config
    modes: dict[str, Mode] = dict(llm.modes)
    if config.groups:
        modes["two groups"] = Mode(name="two groups", groups=min(2, config.groups))
        modes["shared only"] = Mode(name="shared only", groups=0)
    dense = LLM(args.dense, dtype=args.dtype) if args.dense else None
    drafters = ["off", "ngram", *(["self"] if config.groups else [])]
    sampling = SamplingParams(max_tokens=args.tokens, ignore_eos=True)
    speeds: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.repeat + 1):
        if dense is not None:
            out = dense.chat(PROMPT, sampling, speculation="off")
            speeds.setdefault(("dense", "off"), []).append(out.metrics.tokens_per_second)
        for name, mode in modes.items():
            for drafter in drafters:
                wish = "off" if drafter == "off" else Speculation(drafter=drafter, nodes=3)
                out = llm.chat(PROMPT, sampling, mode=mode, speculation=wish)
                speeds.setdefault((name, drafter), []).append(out.metrics.tokens_per_second)
    print(f"{torch.get_num_threads()} threads, {args.dtype}, {args.model}")
    for (name, drafter), measured in speeds.items():
        shape = dense.model.config if name == "dense" and dense is not None else config
        active = active_parameters(shape, None if name == "dense" else modes[name].groups) / 1e6
        speed = statistics.median(measured[1:])  # the first round warms up
        print(f"{name:12} {active:6.1f} M active, drafter {drafter:6} {speed:6.1f} tokens/s")
    llm.close()
    if dense is not None:
        dense.close()


if __name__ == "__main__":
    main()
