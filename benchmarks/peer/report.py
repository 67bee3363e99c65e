"""The tables of a comparison, from its JSON alone.

python benchmarks/peer/report.py peers.json
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ENOUGH = 3  # uncontended samples that make a median
SAME_WIDTH = (  # formats of about as many bits, ours first
    ("fastslow:int4", ("llama.cpp:file", "openvino:file")),
    ("fastslow:int8", ("llama.cpp:q8_0", "openvino:q8_0")),
    ("fastslow:bfloat16", ("llama.cpp:bf16", "llama.cpp:f16", "transformers:bfloat16")),
)

Samples = Sequence[Mapping[str, Any]]


def fair(samples: Samples) -> tuple[Samples, bool]:
    """The uncontended samples, if there are enough of them; else all. And: any contended ones?"""
    clean = [sample for sample in samples if not sample["contended"]]
    return (clean, False) if len(clean) >= ENOUGH else (samples, len(clean) < len(samples))


def middle(samples: Samples, key: str = "rate") -> str:
    """Their median; "~" in front says that it holds contended samples, and n how many are in it."""
    if not samples:
        return "-"
    chosen, contended = fair(samples)
    value = statistics.median(sample[key] for sample in chosen)
    return f"{'~' if contended else ''}{value:.{0 if value >= 100 else 1}f} (n={len(chosen)})"


def cell_of(engine: Mapping[str, Any], cell: str) -> Samples:
    return [sample for sample in engine["samples"] if sample["cell"] == cell]


def identity(samples: Samples) -> str:
    """Whether lookup gave plain decoding's tokens in every sample."""
    parted = [s["parts_at"] for s in samples if s["parts_at"] is not None]
    return f"no, from {min(parted)}" if parted else "yes"


def figures(engines: Mapping[str, Any], cells: Iterable[str]) -> Table:
    table = Table("tokens/s", *cells, "peak MiB", "pss MiB", title="medians")
    for name, engine in engines.items():
        row = []
        for cell in cells:
            samples = cell_of(engine, cell)
            text = middle(samples)
            if cell.startswith("lookup") and samples:
                text += f"\nplain {middle(samples, 'plain')}\nsame: {identity(samples)}"
            row.append(text)
        memory = (f"{engine['memory'].get(key, float('nan')):.0f}" for key in ("peak", "pss"))
        table.add_row(name, *row, *memory)
    return table


def ratios(engines: Mapping[str, Any], cells: Iterable[str]) -> Table:
    """Ours over the peers' formats of about as many bits, within each repeat."""
    table = Table("ratio", *cells, title="fastslow over others, medians over repeats")
    for ours, others in SAME_WIDTH:
        for other in others:
            if ours in engines and other in engines:
                pair = (engines[ours], engines[other])
                table.add_row(f"{ours} / {other}", *(ratio(*pair, cell) for cell in cells))
    return table


def ratio(ours: Mapping[str, Any], other: Mapping[str, Any], cell: str) -> str:
    theirs = {sample["turn"]: sample for sample in cell_of(other, cell)}
    pairs = [
        {
            "rate": sample["rate"] / theirs[sample["turn"]]["rate"],
            "contended": sample["contended"] or theirs[sample["turn"]]["contended"],
        }
        for sample in cell_of(ours, cell)
        if sample["turn"] in theirs
    ]
    if not pairs:
        return "-"
    chosen, contended = fair(pairs)
    value = statistics.median(pair["rate"] for pair in chosen)
    return f"{'~' if contended else ''}{value:.2f} (n={len(chosen)})"


def bandwidth(engines: Mapping[str, Any]) -> list[str]:
    """For engines that tell how many bytes a step reads: which share of the bandwidth that was."""
    lines = []
    for name, engine in engines.items():
        samples = cell_of(engine, "batch 1")
        if engine.get("bytes") and samples:
            chosen, _ = fair(samples)
            used = [s["rate"] * engine["bytes"] / 1e9 / s["bandwidth"] for s in chosen]
            rate = statistics.median(s["bandwidth"] for s in chosen)
            lines.append(
                f"{name}: batch 1 reads {engine['bytes'] / 1e6:.1f} MB of weights a token, "
                f"{statistics.median(used):.0%} of the {rate:.1f} GB/s probed beside it"
            )
    return lines


def show(engines: Mapping[str, Any], cells: Sequence[str], console: Console) -> None:
    console.print(figures(engines, cells))
    compared = ratios(engines, cells)
    if compared.row_count:
        console.print(compared)
    for line in bandwidth(engines):
        console.print(line, highlight=False)
    samples = [sample for engine in engines.values() for sample in engine["samples"]]
    marked = sum(sample["contended"] for sample in samples)
    note = "; ~ marks medians that hold them" if marked else ""
    console.print(f"{marked} of {len(samples)} samples contended{note}", highlight=False)


def main() -> None:
    engines = json.loads(Path(sys.argv[1]).read_text("utf-8"))["engines"]
    cells = dict.fromkeys(s["cell"] for engine in engines.values() for s in engine["samples"])
    show(engines, list(cells), Console(width=None if sys.stdout.isatty() else 150))


if __name__ == "__main__":
    main()
