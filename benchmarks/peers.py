"""fastslow against other engines on the same weights, interleaved in one run.

    python benchmarks/peers.py --setup llama.cpp,openvino
    python benchmarks/peers.py --gguf FILE.gguf --model smollm2 --engines fastslow,llama.cpp,openvino

Every engine and format is a process of its own, in its own virtual environment, with as many
threads as there are physical cores. The processes stay, asleep between commands; each repeat asks
every engine once for each cell, one after the other, in an order that moves on. Cells: tokens per
second of decoding alone and at batch 8 (first token of an answer not counted), of reading a prompt of
512 tokens that no cache has seen, and peak memory before batches. --lookup adds prompt lookup
decoding of three tasks, and whether its tokens are those of plain decoding.

Beside each sample stand the bandwidth of the moment and the share of the machine that other processes
took. Samples where that exceeds 5% are marked contended; medians are over the others if there are
three, else over all, and say so. Ratios are medians over repeats, within each repeat.

Not here: onnxruntime-genai and ctranslate2, which need files of their own kind, and vLLM, whose
CPU wheel needs packages removed by hand.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import probe
from figures import console, options, write
from peer.engines import PEERS, python_of, read_names, set_up
from peer.process import Child, EngineError
from peer.report import show
from peer.texts import TASKS, openings, unseen
from rich.console import Console

from fastslow.engine.host.files import cache_folder
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.text.templates import load_template
from fastslow.models.locate import find_tokenizer, resolve_model

PROMPT = 64
READ = 512
CONTEXT = 2048  # tokens of one text, and of all texts of a batch together
SETTLE = 0.2  # seconds for the last engine's threads to fall asleep
PLAIN = ("batch 1", "batch 8", f"prefill {READ}")


@dataclass
class Entrant:
    """An engine in the comparison, and what was measured of it."""

    name: str
    child: Child
    facts: dict[str, Any] = field(default_factory=dict)  # versions, and what the engine tells
    memory: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    failed: str = ""


class Bench:
    """What is asked of every engine."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.tokens, self.seconds, self.nodes = args.tokens, args.seconds, args.nodes
        self.threads = args.threads
        folder = resolve_model(args.model)
        tokenizer = find_tokenizer(folder)
        if tokenizer is None:
            raise ValueError(f"{folder} has no tokenizer")
        config = ModelConfig.from_folder(folder)
        self.vocabulary = config.vocab_size
        self.prompts = {n: openings(tokenizer, n, PROMPT) for n in (1, 8)}
        template = load_template(folder, tokenizer, config.architecture)
        self.tasks = {
            name: tokenizer.encode(
                template.render([{"role": "user", "content": text}]), template.add_special
            )
            for name, text in TASKS.items()
        }
        lookup = [f"lookup {name}" for name in TASKS] if args.lookup else []
        self.cells = [*PLAIN, *lookup]

    def warm_up(self, entrant: Entrant) -> None:
        """Everything once, and briefly; memory is read before there were batches."""
        ask = entrant.child.ask
        ask("decode", prompts=self.prompts[1], tokens=self.tokens, seconds=0)
        ask("prefill", prompts=unseen(self.vocabulary, [READ], seed=0))
        entrant.memory = probe.memory(entrant.child.pid)
        ask("decode", prompts=self.prompts[8], tokens=4, seconds=0)
        if len(self.cells) > len(PLAIN):
            for nodes in (0, self.nodes):
                ask("answer", prompt=self.tasks["copy"], tokens=4, nodes=nodes)

    def sample(self, entrant: Entrant, cell: str, turn: int) -> dict[str, Any]:
        """One cell of one engine, with the conditions it was measured under."""
        time.sleep(SETTLE)
        measured = probe.sample(
            self.threads, lambda: self._measure(entrant, cell, turn), [entrant.child.pid]
        )
        return {"cell": cell, "turn": turn, **measured}

    def _measure(self, entrant: Entrant, cell: str, turn: int) -> dict[str, Any]:
        kind, _, what = cell.partition(" ")
        ask = entrant.child.ask
        if kind == "batch":
            prompts = self.prompts[int(what)]
            made = ask("decode", prompts=prompts, tokens=self.tokens, seconds=self.seconds)
            return {"rate": made["rate"], "runs": made["runs"]}
        if kind == "prefill":
            prompts = unseen(self.vocabulary, [READ] * 3, seed=turn + 1)
            return {"rate": READ / statistics.median(ask("prefill", prompts=prompts))}
        job = {"prompt": self.tasks[what], "tokens": self.tokens}
        plain = ask("answer", **job, nodes=0)
        made = ask("answer", **job, nodes=self.nodes)
        pairs = zip(plain["tokens"], made["tokens"])
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if same is None and len(plain["tokens"]) != len(made["tokens"]):
            same = min(len(plain["tokens"]), len(made["tokens"]))
        count = len(made["tokens"])
        # `parts_at`: the first token that is not plain decoding's; None = all are.
        return {"rate": made["rate"], "plain": plain["rate"], "parts_at": same, "tokens": count}


def arguments() -> argparse.Namespace:
    parser = options(
        __doc__, "model", "threads", repeat=5, tokens=128, seconds=1.0, out="peers.json"
    )
    parser.add_argument("--gguf", type=Path, help="the model's weights as the others read them")
    parser.add_argument(
        "--engines", default="fastslow,llama.cpp,openvino", help="NAME[:FORMAT],..."
    )
    parser.add_argument("--setup", metavar="NAME,...", help="make these environments and stop")
    parser.add_argument("--venvs", type=Path, default=cache_folder() / "peers")
    parser.add_argument("--lookup", action="store_true", help="measure prompt lookup as well")
    parser.add_argument("--nodes", type=int, default=4, help="tokens that a lookup drafts")
    return parser.parse_args()


def start(args: argparse.Namespace, stack: ExitStack, printer: Console) -> list[Entrant]:
    """The engines that are installed and load; one printed line for each that does not."""
    entrants = []
    args.venvs.mkdir(parents=True, exist_ok=True)
    for name, format in read_names(args.engines):
        title = f"{name}:{format}"
        python = python_of(name, args.venvs)
        if python is None:
            printer.print(f"{title} is left out: not installed; --setup {name} does that")
            continue
        wish = {
            "format": format,
            "file": str(args.gguf.resolve()),
            "model": args.model,
            "folder": str(resolve_model(args.model)),
            "cache": str(args.venvs),
            "threads": args.threads,
            "context": CONTEXT,
            "room": CONTEXT,
        }
        adapter, log = PEERS[name].adapter, args.venvs / f"{name}-{format}.log"
        try:
            # What is made at a first load would count as memory of decoding, so one process
            # loads and ends before the one that is measured.
            for again in reversed(range(1 + PEERS[name].makes_files)):
                child = Child(title, python, adapter, {"OMP_NUM_THREADS": str(args.threads)}, log)
                stack.callback(child.close)
                facts = child.ask("load", options=wish)
                if again:
                    child.close()
            entrants.append(Entrant(title, child, facts))
        except EngineError as error:
            printer.print(f"{title} is left out: {error}", highlight=False)
            child.close()
    return entrants


def measure(bench: Bench, entrants: list[Entrant], turn: int, printer: Console) -> None:
    """One repeat. An engine that fails is told of and then left alone."""
    first = turn % len(entrants)
    for cell in bench.cells:
        for entrant in entrants[first:] + entrants[:first]:
            if entrant.failed:
                continue
            try:
                entrant.samples.append(bench.sample(entrant, cell, turn))
            except EngineError as error:
                entrant.failed = str(error)
                printer.print(f"{entrant.name} failed: {error}", highlight=False)


def record(entrants: list[Entrant]) -> dict[str, Any]:
    return {
        e.name: {**e.facts, "memory": e.memory, "failed": e.failed, "samples": e.samples}
        for e in entrants
    }


def main() -> int:
    args = arguments()
    printer = console()
    if args.setup:
        try:
            for name in args.setup.split(","):
                set_up(name, args.venvs)
        except subprocess.CalledProcessError as error:
            printer.print(f"{name} could not be installed (code {error.returncode})")
            return 1
        return 0
    if args.gguf is None or not args.gguf.is_file():
        printer.print("--gguf must name a file")
        return 2
    bench = Bench(args)
    with ExitStack() as stack:
        entrants = start(args, stack, printer)
        for entrant in entrants:
            try:
                bench.warm_up(entrant)
            except EngineError as error:
                entrant.failed = str(error)
                printer.print(f"{entrant.name} failed: {error}", highlight=False)
        for turn in range(args.repeat if entrants else 0):
            measure(bench, entrants, turn, printer)
            printer.print(f"repeat {turn + 1} of {args.repeat}")
            write(args.out, args.threads, engines=record(entrants))
    if not entrants:
        return 1
    show(record(entrants), bench.cells, printer)
    printer.print(f"{args.threads} threads; samples in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
