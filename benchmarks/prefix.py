"""Time to the first token of a long prompt: cold, read back from the spill file, and resident.

    python benchmarks/prefix.py --model smollm2-moge --tokens 4000 --out prefix.json

One prompt of random tokens is asked again and again, for one token each time. Resident: its pages are in memory. Spilled:
another prompt took its pages since, and they lie in the file of `kv_spill`. Cold: everything was forgotten before. One
round does not count. The file has just been written, so it is read from the system's memory as long as that has room; a
disk would be slower. "without" is the cold prompt of an engine that has no file.
"""

from __future__ import annotations

import random
import statistics

from figures import options, show, write

from fastslow import LLM, SamplingParams

ONE = SamplingParams(max_tokens=1, ignore_eos=True, temperature=0.0)


def seconds(llm: LLM, prompt: list[int], cached: int) -> float:
    """From the call to the first token; the prompt must find so many tokens in the cache."""
    metrics = llm.generate(prompt, ONE, speculation="off").metrics
    assert metrics.cached_tokens == cached, f"{metrics.cached_tokens} were cached, not {cached}"
    return metrics.ttft


def main() -> None:
    parser = options(
        __doc__, "dtype", "out", model="smollm2-moge", quantization="auto", tokens=4000, repeat=5
    )
    parser.add_argument("--spill", default="1GiB", help="size of the file (1GiB)")
    args = parser.parse_args()
    found: dict[str, list[float]] = {"cold": [], "spilled": [], "resident": [], "without": []}
    fields = {"quantization": args.quantization, "dtype": args.dtype or "auto", "max_running": 1}
    fields |= {"max_model_len": args.tokens + 16, "progress": False}  # pages for one prompt alone
    with LLM(args.model, **fields, kv_spill=args.spill) as llm, LLM(args.model, **fields) as other:
        size = llm.model.config.vocab_size
        one, two = ([random.Random(n).randrange(size) for _ in range(args.tokens)] for n in (1, 2))
        whole = (args.tokens - 1) // llm._kv.page_size * llm._kv.page_size
        for _ in range(args.repeat + 1):
            for engine in (llm, other):
                engine.forget_prompts()
            found["cold"].append(seconds(llm, one, 0))
            found["resident"].append(seconds(llm, one, whole))
            seconds(llm, two, 0)
            found["spilled"].append(seconds(llm, one, whole))
            found["without"].append(seconds(other, one, 0))
        spilled = llm.stats().pages_spilled
    rows = [
        {"prefix": name, "tokens": args.tokens, "ms": 1000 * statistics.median(times[1:])}
        for name, times in found.items()
    ]
    show(["prefix", "first token, ms"], [[row["prefix"], f"{row['ms']:.1f}"] for row in rows])
    write(args.out, model=args.model, pages_spilled=spilled, figures=rows)


if __name__ == "__main__":
    main()
