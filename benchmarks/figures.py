"""Parts of every benchmark: common options, medians, tables, the JSON file; and the
conditions that stand beside each sample, of which /proc and /sys tell: Linux only."""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import timeit
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fastslow.engine.backends.cpu import library
from fastslow.engine.host.machine import CONTENDED, Watch
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.text.templates import load_template
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.tools.machine import circumstances

Samples = Sequence[Mapping[str, Any]]
ENOUGH = 3  # uncontended samples that make a median
PROBE_BYTES = 2**29  # far more than any cache
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


def physical_cores() -> int:
    """Cores this process may use, two hyper-threads of one core counted once."""
    cores = set()
    for cpu in os.sched_getaffinity(0):
        folder = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add(
                (folder / "physical_package_id").read_text() + (folder / "core_id").read_text()
            )
        except OSError:  # some virtual machines do not tell
            cores.add(str(cpu))
    return len(cores)


OPTIONS: dict[str, dict[str, Any]] = {
    "model": {"default": "smollm2", "help": "a folder or a built-in name"},
    "dtype": {"help": "of the weights, or auto"},
    "quantization": {"help": "none, int8, int4 or auto"},
    "limit": {"type": int, "help": "prompts of each set"},
    "tokens": {"type": int, "help": "of each answer"},
    "threads": {"type": int, "default": physical_cores()},
    "repeat": {"type": int, "help": "turns that count"},
    "seconds": {"type": float, "default": 1.0, "help": "least length of a sample"},
    "out": {"type": Path, "help": "JSON file of all figures"},
}


def options(doc: str | None, *names: str, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with some of the common options, those of `defaults` with other defaults."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in (*names, *defaults):
        fields = OPTIONS[name] | ({"default": defaults[name]} if name in defaults else {})
        parser.add_argument(*(["-o"] if name == "out" else []), f"--{name}", **fields)
    return parser


def numbers(text: str) -> list[int]:
    """The numbers of an option such as 1,2,4."""
    return [int(part) for part in text.split(",") if part]


def chat_encoder(folder: Path) -> Callable[..., list[int]]:
    """Token ids of a conversation, put through the chat template; and how it is to think, if asked for."""
    tokenizer, config = load_tokenizer(folder), ModelConfig.from_folder(folder)
    template = load_template(folder, tokenizer, config.architecture)
    return lambda *asked: tokenizer.encode(template.render(*asked), template.add_special)


def console() -> Console:
    """As wide as the terminal; 150 columns where the output goes to a file."""
    return Console(width=None if sys.stdout.isatty() else 150, highlight=False)


def show(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *notes: str, title: str = ""
) -> None:
    """Print a table, the notes below it."""
    table = Table(*titles, title=title or None)
    for row in rows:
        table.add_row(*row)
    printer = console()
    if table.row_count:
        printer.print(table)
    for note in notes:
        printer.print(note)


def write(out: Path | None, **figures: Any) -> None:
    """Write the figures, if a file is asked for, with what they were measured under."""
    if out is not None:
        whole = {**header(), **figures}
        out.write_text(json.dumps(whole, indent=1, default=str), "utf-8")


def fair(samples: Samples) -> tuple[Samples, bool]:
    """The uncontended samples, if there are enough of them; else all. And: any contended ones?"""
    clean = [sample for sample in samples if not sample["contended"]]
    return (clean, False) if len(clean) >= ENOUGH else (samples, len(clean) < len(samples))


def middle(samples: Samples, key: str = "rate", digits: int | None = None) -> str:
    """Their median; "~" in front says that it holds contended samples, and n how many are in it."""
    if not samples:
        return "-"
    chosen, contended = fair(samples)
    value = statistics.median(sample[key] for sample in chosen)
    places = digits if digits is not None else 0 if value >= 100 else 1
    return f"{'~' if contended else ''}{value:.{places}f} (n={len(chosen)})"


# Conditions


def header() -> dict[str, Any]:
    """The header of every file of figures: command, versions, commit ("+": files differ from it) and machine."""
    text = Path("/proc/cpuinfo").read_text("utf-8").split("flags", 1)[-1]
    known, facts = text.partition("\n")[0].split(), circumstances()
    facts["machine"] |= {
        "cores": physical_cores(),
        "flags": [flag for flag in FLAGS if flag in known],
        "GiB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "bandwidth_by": "kernels" if library.available() else "numpy, one thread",
    }
    git = ["git", "-C", str(Path(__file__).parent), "describe"]
    git += ["--always", "--exclude=*", "--dirty=+"]
    with suppress(OSError, subprocess.CalledProcessError):  # no git, or no checkout
        return facts | {"commit": subprocess.check_output(git, text=True).strip()}
    return facts | {"commit": ""}


@functools.cache
def _block() -> np.ndarray[Any, Any]:
    return np.ones(PROBE_BYTES // 8, dtype=np.int64)


def read_bandwidth(threads: int, passes: int = 5) -> float:
    """GB/s of the best of some passes: of the kernels' reader, else of a numpy sum, which is slower."""
    block = _block()
    if library.available():
        return max(library.read_bandwidth(block, threads) for _ in range(passes))
    return block.nbytes / min(timeit.repeat(block.sum, number=1, repeat=passes)) / 1e9


def with_conditions(
    threads: int, measure: Callable[[], Mapping[str, Any]], own: Iterable[int] = ()
) -> dict[str, Any]:
    """Return what `measure` gives, and the conditions it ran under; `own`: processes of the benchmark besides this one.

    `bandwidth` is the better of a probe before and one after; `others` is the share of all logical processors that
    other processes and virtual machines took. /proc counts in ticks: None, where a sample lasts less than half a second.
    """
    bandwidth, watch = read_bandwidth(threads), Watch(*own)
    measured, others = measure(), watch.others()
    contended = others is not None and others > CONTENDED
    best = max(bandwidth, read_bandwidth(threads))
    return {**measured, "bandwidth": best, "others": others, "contended": contended}


def memory(pid: int) -> dict[str, float]:
    """MiB of a process: `peak` and `rss` resident, shared files counted; `pss` splits shared pages."""
    names = {"VmHWM": "peak", "VmRSS": "rss", "Pss": "pss"}
    found = {}
    for file in ("status", "smaps_rollup"):
        for line in Path(f"/proc/{pid}/{file}").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            if key in names:
                found[names[key]] = int(value.split()[0]) / 1024
    return found
