"""fastslow against other engines on the same weights, interleaved in one run.

    python benchmarks/peers.py --setup llama.cpp,openvino
    python benchmarks/peers.py --gguf FILE.gguf --model smollm2 --engines fastslow,llama.cpp,openvino
    python benchmarks/peers.py --gguf FILE.gguf --model FILE.gguf --engines fastslow:file,llama.cpp:file

Every engine and format is a separate process in a virtual environment, with as many threads as there are
physical cores. The processes stay, asleep between commands; each repeat asks every engine once for each cell, one
after the other, in an order that moves on. Cells: tokens per second of decoding --batches of requests (first token of
an answer not counted, and all prompts read before), of reading a prompt of 512 tokens that no cache has seen, and peak
memory before batches.
--lookup adds prompt lookup decoding of three tasks, and whether its tokens are those of plain decoding.

Beside each sample stand the bandwidth of the moment and the share of the machine that other processes took. Samples
where that exceeds 5% are marked contended; medians are over the others if there are three, else over all, and say so
("~"). Ratios are medians over repeats, within each repeat.

Not measured: onnxruntime-genai, ctranslate2 and vLLM, which need other files.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from figures import (
    Samples,
    chat_encoder,
    fair,
    memory,
    middle,
    options,
    show,
    with_conditions,
    write,
)
from peer.engines import PEERS, EngineClient, EngineError, python_of, read_names, set_up
from peer.texts import TASKS, openings, unseen

from fastslow.engine.host.files import cache_folder
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.text.tokenizer import load_tokenizer
from fastslow.models.locate import resolve_model

PROMPT = 64
READ = 512
CONTEXT = 2048  # tokens of one text, and of all texts of a batch
SETTLE = 0.2  # seconds for the last engine's threads to fall asleep
SAME_WIDTH = (  # formats of about as many bits, ours first
    ("fastslow:file", ("llama.cpp:file",)),
    ("fastslow:int4", ("llama.cpp:file", "openvino:file")),
    ("fastslow:int8", ("llama.cpp:q8_0", "openvino:q8_0")),
    ("fastslow:bfloat16", ("llama.cpp:bf16", "llama.cpp:f16", "openvino:f16")),
)
Engines = dict[str, dict[str, Any]]  # facts, "memory", "failed" and "samples" of each


class PeerBench:
    """The cells that every engine is asked for, and what was found so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        folder = resolve_model(args.model)
        self._vocabulary = ModelConfig.from_folder(folder).vocab_size
        self._batches = [int(size) for size in args.batches.split(",")]
        sizes = {1, *self._batches}
        self._prompts = {n: openings(load_tokenizer(folder), n, PROMPT) for n in sizes}
        self._room = max(CONTEXT, max(sizes) * (PROMPT + args.tokens))
        encode = chat_encoder(folder)
        self._tasks = {n: encode([{"role": "user", "content": t}]) for n, t in TASKS.items()}
        lookups = [f"lookup {name}" for name in TASKS if args.lookup]
        self.cells = [*(f"batch {n}" for n in self._batches), f"prefill {READ}", *lookups]
        self.found: Engines = {}
        self._running: dict[str, EngineClient] = {}

    def start(self, stack: ExitStack) -> None:
        """Load the engines that are installed; one printed line for each that does not come up."""
        args = self._args
        args.venvs.mkdir(parents=True, exist_ok=True)
        for name, format in read_names(args.engines):
            title, peer = f"{name}:{format}", PEERS[name]
            python = python_of(name, args.venvs)
            if python is None:
                print(f"{title} is left out: not installed; --setup {name} does that")
                continue
            wish = {
                "format": format, "file": str(args.gguf.resolve()), "model": args.model,
                "folder": str(resolve_model(args.model)), "cache": str(args.venvs),
                "threads": args.threads, "context": CONTEXT, "room": self._room,
                "requests": max(self._batches),
            }  # fmt: skip
            log = args.venvs / f"{name}-{format}.log"
            threads = {"OMP_NUM_THREADS": str(args.threads)}
            try:
                # What is made at a first load would count as memory of decoding, so one process
                # loads and ends before the one that is measured.
                for again in reversed(range(1 + peer.makes_files)):
                    process = EngineClient(python, peer.adapter, threads, log)
                    stack.callback(process.close)
                    facts = process.ask("load", options=wish)
                    if again:
                        process.close()
            except EngineError as error:
                print(f"{title} is left out: {error}")
                process.close()
                continue
            self._running[title] = process
            self.found[title] = {**facts, "memory": {}, "failed": "", "samples": []}

    def warm_up(self, title: str) -> None:
        """Everything once, and briefly; memory is read before there were batches."""
        ask, found = self._running[title].ask, self.found[title]
        try:
            ask("decode", prompts=self._prompts[1], tokens=self._args.tokens, seconds=0)
            ask("prefill", prompts=unseen(self._vocabulary, [READ], seed=0))
            found["memory"] = memory(self._running[title].pid)
            for size in self._batches:
                ask("decode", prompts=self._prompts[size], tokens=4, seconds=0)
            for nodes in (0, self._args.nodes) if self._args.lookup else ():
                ask("answer", prompt=self._tasks["copy"], tokens=4, nodes=nodes)
        except EngineError as error:
            self._fail(title, error)

    def turn(self, number: int) -> None:
        """Run one repeat. An engine that fails is printed, and asked no more."""
        titles = list(self.found)
        first = number % len(titles)
        for cell in self.cells:
            for title in titles[first:] + titles[:first]:
                if self.found[title]["failed"]:
                    continue
                time.sleep(SETTLE)
                job, own = partial(self._measure, title, cell, number), self._running[title].pid
                try:
                    sample = with_conditions(self._args.threads, job, [own])
                except EngineError as error:
                    self._fail(title, error)
                else:
                    self.found[title]["samples"].append({"cell": cell, "turn": number, **sample})

    def _fail(self, title: str, error: EngineError) -> None:
        self.found[title]["failed"] = str(error)
        print(f"{title} failed: {error}")

    def _measure(self, title: str, cell: str, turn: int) -> dict[str, Any]:
        kind, _, what = cell.partition(" ")
        ask, tokens = self._running[title].ask, self._args.tokens
        if kind == "batch":
            prompts = self._prompts[int(what)]
            made = ask("decode", prompts=prompts, tokens=tokens, seconds=self._args.seconds)
            return {"rate": made["rate"], "runs": made["runs"]}
        if kind == "prefill":
            prompts = unseen(self._vocabulary, [READ] * 3, seed=turn + 1)
            return {"rate": READ / statistics.median(ask("prefill", prompts=prompts))}
        plain, made = (
            ask("answer", prompt=self._tasks[what], tokens=tokens, nodes=nodes)
            for nodes in (0, self._args.nodes)
        )
        pairs = list(zip(plain["tokens"], made["tokens"]))
        differ = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if differ is None and len(plain["tokens"]) != len(made["tokens"]):
            differ = len(pairs)
        # `differs_at`: the first token that is not plain decoding's; None = all are.
        rates = {"rate": made["rate"], "plain": plain["rate"]}
        return {**rates, "differs_at": differ, "tokens": len(made["tokens"])}


def samples_of(engine: Mapping[str, Any], cell: str) -> Samples:
    return [sample for sample in engine["samples"] if sample["cell"] == cell]


def medians(engine: Mapping[str, Any], cell: str) -> str:
    samples = samples_of(engine, cell)
    if not samples or not cell.startswith("lookup"):
        return middle(samples)
    differ = [s["differs_at"] for s in samples if s["differs_at"] is not None]
    same = f"no, from {min(differ)}" if differ else "yes"
    return f"{middle(samples)}\nplain {middle(samples, 'plain')}\nsame: {same}"


def ratio(ours: Mapping[str, Any], other: Mapping[str, Any], cell: str) -> str:
    """Within each repeat, the median over repeats."""
    theirs = {sample["turn"]: sample for sample in samples_of(other, cell)}
    pairs = [(s, theirs[s["turn"]]) for s in samples_of(ours, cell) if s["turn"] in theirs]
    both = ((a["rate"] / b["rate"], a["contended"] or b["contended"]) for a, b in pairs)
    return middle([{"rate": rate, "contended": contended} for rate, contended in both], digits=2)


def bandwidth(engines: Engines) -> Iterable[str]:
    """For engines that tell how many bytes a step reads: which share of the bandwidth that was."""
    for name, engine in engines.items():
        chosen, _ = fair(samples_of(engine, "batch 1"))
        if engine.get("bytes") and chosen:
            used = [s["rate"] * engine["bytes"] / 1e9 / s["bandwidth"] for s in chosen]
            rate = statistics.median(s["bandwidth"] for s in chosen)
            yield (
                f"{name}: batch 1 reads {engine['bytes'] / 1e6:.1f} MB of weights a token, "
                f"{statistics.median(used):.0%} of the {rate:.1f} GB/s probed beside it"
            )


def report(engines: Engines) -> None:
    """The tables of a comparison."""
    samples = [sample for engine in engines.values() for sample in engine["samples"]]
    cells = list(dict.fromkeys(sample["cell"] for sample in samples))
    rows = []
    for name, engine in engines.items():
        memory = (f"{engine['memory'].get(key, float('nan')):.0f}" for key in ("peak", "pss"))
        rows.append([name, *(medians(engine, cell) for cell in cells), *memory])
    show(["tokens/s", *cells, "peak MiB", "pss MiB"], rows, title="medians")
    ratios = [
        [f"{ours} / {other}", *(ratio(engines[ours], engines[other], cell) for cell in cells)]
        for ours, others in SAME_WIDTH
        for other in others
        if ours in engines and other in engines
    ]
    marked = sum(sample["contended"] for sample in samples)
    notes = [*bandwidth(engines), f"{marked} of {len(samples)} samples contended"]
    show(["ratio", *cells], ratios, *notes, title="fastslow over others, medians over repeats")


def main() -> int:
    parser = options(
        __doc__, "model", "threads", repeat=5, tokens=128, seconds=1.0, out="peers.json"
    )
    parser.add_argument("--gguf", type=Path, help="the model's weights as the others read them")
    usual = "fastslow,llama.cpp,openvino"
    parser.add_argument("--engines", default=usual, help="NAME[:FORMAT],...")
    parser.add_argument("--batches", default="1,8", help="sizes, such as 1,8,64")
    parser.add_argument("--setup", metavar="NAME,...", help="make these environments and stop")
    parser.add_argument("--venvs", type=Path, default=cache_folder() / "peers")
    parser.add_argument("--lookup", action="store_true", help="measure prompt lookup as well")
    parser.add_argument("--nodes", type=int, default=4, help="tokens that a lookup drafts")
    args = parser.parse_args()
    if args.setup:
        codes = [set_up(name, args.venvs) for name in args.setup.split(",")]
        return int(any(codes))
    if args.gguf is None or not args.gguf.is_file():
        print("--gguf must name a file")
        return 2
    bench = PeerBench(args)
    with ExitStack() as stack:
        bench.start(stack)
        for title in bench.found:
            bench.warm_up(title)
        for turn in range(args.repeat if bench.found else 0):
            bench.turn(turn)
            print(f"repeat {turn + 1} of {args.repeat}")
            write(args.out, threads=args.threads, engines=bench.found)
    if not bench.found:
        return 1
    report(bench.found)
    print(f"{args.threads} threads; samples in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
