"""What a step of several rows costs: against the bytes that it reads, and by the parts of the model.

    python benchmarks/rows.py --model smollm2-moge --quantization int8 [--rows 1 2 4 8] [--context 64]

The rows are the next tokens of as many answers. In a MoGE model they choose different experts, so a step reads more
the more rows it has; the kernels tell how many experts it read. The keys and values of each context are read, too. If
time followed bytes alone, "of one row" would be 1 everywhere: it is the time per byte over that of a step of one row.
Groups and rows take turns, the bandwidth is probed beside them; medians over steps.

The second table says where the milliseconds of a step go. The kernels time their parts themselves, on thread 0;
"engine" is all that is not the model: scheduling, probabilities, acceptance, text.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import probe
import torch
from figures import Row, on_kernels, options, show, write
from peer.texts import openings

from fastslow import LLM, Mode, SamplingParams


class TimedForward:
    """Notes seconds and bytes of weights of each forward of a model."""

    def __init__(self, llm: LLM) -> None:
        self._model = on_kernels(llm.model)
        self._forward = self._model.forward
        self.steps: list[tuple[float, int]] = []
        self._model.forward = self  # type: ignore[method-assign]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        made = self._forward(*arguments, **options)
        self.steps.append((time.perf_counter() - started, self._model.bytes_read()))
        return made


def measure(
    llm: LLM, timed: TimedForward, prompts: list[list[int]], mode: Mode, tokens: int
) -> Row:
    """Answers at once, whose prompts are cached: (seconds, bytes) of each step; and once more with the model's own
    timer: milliseconds of a step for each part."""
    model = on_kernels(llm.model)
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)

    def answer() -> float:
        timed.steps.clear()
        started = time.perf_counter()
        llm.generate(prompts, sampling, mode=mode, speculation="off", progress=False)
        return time.perf_counter() - started

    answer()
    per_token = model.config.kv_bytes_per_token(model.dtype)
    steps = [  # without the first, which reads what is left of the prompts
        (seconds, weights + len(prompts) * (len(prompts[0]) + n) * per_token)
        for n, (seconds, weights) in enumerate(timed.steps[1:], 1)
    ]
    model.part_seconds(True)
    whole = answer()
    parts = {name: seconds for name, seconds in model.part_seconds(False).items() if seconds}
    inside = sum(seconds for seconds, _ in timed.steps)
    parts |= {"call": inside - sum(parts.values()), "engine": whole - inside}
    count = len(timed.steps)
    return {"steps": steps, "parts": {name: s / count * 1e3 for name, s in parts.items()}}


def main() -> None:
    kind = {"model": "smollm2-moge", "dtype": "bfloat16", "quantization": "none"}
    parser = options(__doc__, "threads", tokens=32, repeat=5, out="rows.json", **kind)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--groups", type=int, nargs="+", help="default: all, half of them, none")
    parser.add_argument("--context", type=int, default=64, help="tokens of each prompt")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with LLM(args.model, dtype=args.dtype, quantization=args.quantization) as llm:
        every = on_kernels(llm.model).config.groups
        groups = args.groups or sorted({every, every // 2, 0}, reverse=True)
        prompts = openings(llm.tokenizer, max(args.rows), args.context)
        timed, bandwidth = TimedForward(llm), []
        samples: dict[tuple[int, int], list[Row]] = {(g, n): [] for g in groups for n in args.rows}
        for turn in range(args.repeat + 1):  # the first warms up
            bandwidth.append(probe.read_bandwidth(args.threads))
            for (g, n), found in samples.items():
                mode = Mode(groups=g if every else None, thinking="off")
                sample = measure(llm, timed, prompts[:n], mode, args.tokens)
                found += [sample] if turn else []
    probed, base, figures, parts = statistics.median(bandwidth), 0.0, [], []
    for (g, n), found in samples.items():
        steps = [step for sample in found for step in sample["steps"]]
        seconds, read, per_byte = (
            statistics.median(values)
            for values in zip(*((taken, size, taken / size) for taken, size in steps), strict=True)
        )
        base, speed = per_byte if n == args.rows[0] else base, 1e-9 / per_byte
        figures.append({
            "groups": g, "rows": n, "ms a step": seconds * 1e3, "MB read": read / 1e6, "GB/s": speed,
            "of the probe": speed / probed, "of one row": per_byte / base,
        })  # fmt: skip
        by_part = (statistics.median(s["parts"][name] for s in found) for name in found[0]["parts"])
        parts.append({"groups": g, "rows": n, **dict(zip(found[0]["parts"], by_part))})
    for table in (figures, parts):
        titles = list(dict.fromkeys(name for row in table for name in row))
        cells = ([row.get(name, 0) for name in titles] for row in table)
        show(titles, ([f"{v:.3f}" if isinstance(v, float) else str(v) for v in c] for c in cells))
    print(f"probed {probed:.1f} GB/s, {args.threads} threads; figures in {args.out}")
    write(args.out, probed=probed, figures=figures, parts=parts)


if __name__ == "__main__":
    main()
