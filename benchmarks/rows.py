"""What a step of several rows costs, against the bytes that it reads.

    python benchmarks/rows.py --model smollm2-moge --quantization int8 [--rows 1 2 4 8]

The rows are the next tokens of as many texts. In a MoGE model they choose different experts, so a
step reads more the more rows it has; the kernels tell how many experts it read. Each text's keys and
values are read, too. If time followed bytes alone, "of one row" would be 1 everywhere: it is the time
per byte over that of a plain step.
Modes and rows take turns, the bandwidth is probed beside them; medians.
"""

from __future__ import annotations

import statistics
import time

import probe
import torch
from figures import console, on_kernels, options, write
from peer.texts import openings
from rich.table import Table

from fastslow.engine.backends.cpu.decoder import CpuDecoder
from fastslow.engine.backends.loader import load_model
from fastslow.engine.model.base import kv_cache_for
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.engine.types import Rows, Segment
from fastslow.models.locate import resolve_model

PROMPT = 64
PAGE = 16


class Steps:
    """Texts whose keys and values are cached, in one mode, ready for a next row each."""

    def __init__(
        self, model: CpuDecoder, texts: list[list[int]], groups: int | None, answer: int
    ) -> None:
        self._model, self._groups = model, groups
        self._texts = [list(text) for text in texts]
        pages = len(texts) * -(-(PROMPT + answer) // PAGE)
        self._kv = kv_cache_for(model, pages, PAGE, prefix_caching=False)
        for n, text in enumerate(self._texts):
            self._kv.open(n, text, groups, 0)
            self._kv.reserve(n, PROMPT + answer)
        self._run([range(len(text)) for text in self._texts])

    def _run(self, places: list[range]) -> float:
        segments = [
            Segment(
                tokens=[self._texts[n][p] for p in some],
                positions=some,
                parents=range(-1, len(some) - 1),
                slots=self._kv.slots(n, some[0], some[-1] + 1),
                context=self._kv.slots(n, 0, some[0]),
                groups=self._groups,
                outputs=[len(some) - 1],
                max_len=some[-1] + 1,
            )
            for n, some in enumerate(places)
        ]
        rows = Rows.of(segments)
        started = time.perf_counter()
        logits_BV = self._model.forward(rows, self._kv.storage).logits
        taken = time.perf_counter() - started
        for text, logits_V in zip(self._texts, logits_BV, strict=True):
            text.append(int(logits_V.argmax()))
        return taken

    def step(self) -> tuple[float, int]:
        """One more token of every text: its seconds, and the bytes that it read."""
        slots = sum(len(text) for text in self._texts)
        taken = self._run([range(len(text) - 1, len(text)) for text in self._texts])
        per_token = self._model.config.kv_bytes_per_token(self._model.dtype)
        return taken, self._model.bytes_read() + int(slots * per_token)


def main() -> None:
    parser = options(
        __doc__, "threads",
        model="smollm2-moge", dtype="bfloat16", quantization="none", rows=[1, 2, 4, 8], out="rows.json",
    )  # fmt: skip
    parser.add_argument("--groups", type=int, nargs="+", help="default: all, half of them, none")
    parser.add_argument("--steps", type=int, default=160)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = resolve_model(args.model)
    model = on_kernels(load_model(folder, dtype=args.dtype, quantization=args.quantization))
    every = model.config.groups
    groups = args.groups or sorted({every, every // 2, 0}, reverse=True)
    texts = openings(load_tokenizer(folder), max(args.rows), PROMPT)
    runs = {
        (g, n): Steps(model, texts[:n], g if every else None, args.steps)
        for g in groups
        for n in args.rows
    }
    samples: dict[tuple[int, int], list[tuple[float, int]]] = {key: [] for key in runs}
    bandwidth = []
    for turn in range(args.steps):
        if turn % 8 == 0:
            bandwidth.append(probe.read_bandwidth(args.threads))
        for key, steps in runs.items():
            samples[key].append(steps.step())
    probed = statistics.median(bandwidth)
    table = Table("groups", "rows", "ms a step", "MB read", "GB/s", "of the probe", "of one row")
    figures = []
    for g in groups:
        base = 0.0
        for n in args.rows:
            seconds = statistics.median(taken for taken, _ in samples[g, n])
            read = statistics.median(size for _, size in samples[g, n])
            per_byte = statistics.median(taken / size for taken, size in samples[g, n])
            base = base or per_byte
            speed = 1e-9 / per_byte
            row = (g, n, seconds * 1e3, read / 1e6, speed, speed / probed, per_byte / base)
            table.add_row(
                f"{g}", f"{n}", f"{row[2]:.2f}", f"{row[3]:.1f}", f"{speed:.1f}",
                f"{row[5]:.0%}", f"{row[6]:.2f}",
            )  # fmt: skip
            figures.append(dict(zip((c.header for c in table.columns), row, strict=True)))
    printer = console(120)
    printer.print(table)
    printer.print(f"probed {probed:.1f} GB/s, {args.threads} threads; figures in {args.out}")
    write(args.out, args.threads, probed=probed, figures=figures)


if __name__ == "__main__":
    main()
