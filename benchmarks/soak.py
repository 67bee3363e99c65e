"""A long run under load: every call ends, every answer is right, and no page and no memory is lost.

    python benchmarks/soak.py [--model abacus] [--minutes 10] [--threads 32] [--pages 40] [--seed 0]

Threads call one LLM in every way there is: `generate`, `stream`, `submit`, asyncio. Modes, drafters, budgets, rules,
seeds and latency targets are mixed. One call in four is cancelled at some moment, one in twenty is wrong, some have a
time limit. KV pages are short, so that requests are preempted. In between, other LLMs are made and dropped without
`close`.

Every greedy answer, and every seeded one, must be the tokens that the model gives alone and without drafts. A
cancelled one must be a beginning of them, or of those that its mode drops where it begins again. Memory is the part
that is not a mapped file, read every second. Exit code 1 where anything is wrong; the list says what, with the seed of
its thread.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from figures import options, show, write
from serve_load.front import growth, memory

from fastslow import LLM, Escalation, Message, Mode, Output, Prompt, SamplingParams, Speculation

WAIT = 60.0  # seconds after which a call hangs
WRONG: tuple[dict[str, Any], ...] = (
    {"prompt": ""},
    {"prompt": [2**40]},
    {"prompt": [{"role": "user"}]},
    {"prompt": "7 + 8", "mode": "fats"},
    {"prompt": "7 + 8", "speculation": "magic"},
    {"prompt": "7 " * 10**6},
)
RULES = ("auto", "token", "block", "reproducible")


@dataclass(frozen=True)
class Job:
    """A call whose answer is known: greedy, or with a seed."""

    prompt: Prompt
    sampling: SamplingParams
    mode: Mode


@dataclass
class Found:
    """What happened, counted by the calling threads."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, *names: str) -> None:
        with self.lock:
            self.counts.update(names)

    def fail(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what)


def jobs_for(llm: LLM, count: int, seed: int) -> list[Job]:
    """Sums to work out, as text, token ids and conversations, in modes of every kind."""
    draw = random.Random(seed)
    groups = llm.model.config.groups
    modes = [
        *(Mode(thinking="off"), Mode(thinking="on", thinking_budget=24), Mode(thinking="on")),
        Mode(thinking="off", latency_ms=30.0, may_shorten=("draft",)),
        Mode(thinking="off", escalate=Escalation(below=0.9, window=2, how="restart")),
        Mode(thinking="off", escalate=Escalation(below=0.9, window=2)),
    ]
    if groups:
        modes += [Mode(groups=groups // 2, thinking="off"), Mode(groups=0, thinking="off")]
    found = []
    for n in range(count):
        text = " + ".join(
            str(draw.randrange(1, 10 ** draw.randrange(1, 4))) for _ in range(draw.randrange(2, 9))
        )
        talk: list[Message] = [{"role": "user", "content": f"What is {text}?"}]
        ids = [1 + (n * 7 + i * 5) % 200 for i in range(draw.randrange(1, 80))]
        prompt: Prompt = (talk, text, ids)[n % 3]
        sampling = SamplingParams(
            max_tokens=draw.choice((1, 8, 32, 96)),
            temperature=draw.choice((0.0, 0.0, 0.0, 0.8)),
            repetition_penalty=draw.choice((1.0, 1.0, 1.2)),
            stop=draw.choice(((), (), ("9",), ("no such text", "=="))),
            seed=n,
        )  # fmt: skip
        found.append(Job(prompt, sampling, modes[n % len(modes)]))
    return found


class Caller:
    """One thread that calls until the time is over."""

    def __init__(
        self, llm: LLM, draft_model: str | None, jobs: list[Job], alone: list[list[list[int]]],
        found: Found, seed: int,
    ) -> None:  # fmt: skip
        self._llm, self._jobs, self._alone = llm, jobs, alone
        self._found, self._seed = found, seed
        self._draw = random.Random(seed)
        self._drafters = ["off", "ngram", "suffix", "auto", "suffix+ngram"]
        self._drafters += ["self"] * bool(llm.model.config.groups)
        self._drafters += ["head"] * llm.has_head
        self._drafters += ["model", "model|suffix"] * (draft_model is not None)
        self._draft_model = draft_model

    def run(self, end: float) -> None:
        while time.monotonic() < end:
            started = time.monotonic()
            try:
                self._call()
            except Exception as error:  # noqa: BLE001 - every one is a finding
                self._found.fail(f"thread {self._seed}: {type(error).__name__}: {error}")
            if time.monotonic() - started > WAIT:
                self._found.fail(f"thread {self._seed}: a call took over {WAIT:g} s")

    def _call(self) -> None:
        kind = self._draw.random()
        if kind < 0.05:
            return self._wrong()
        place = self._draw.randrange(len(self._jobs))
        job = self._jobs[place]
        rule = self._draw.choice(RULES if job.sampling.temperature == 0 else RULES[3:])
        drafter = self._draw.choice(self._drafters)
        speculation = Speculation(
            drafter=drafter,
            model=self._draft_model if "model" in drafter else None,
            nodes=self._draw.choice((None, 1, 3, 8)),
            accept=rule,  # type: ignore[arg-type]
        )
        asked: dict[str, Any] = {"mode": job.mode, "speculation": speculation}
        if kind < 0.30:
            output = self._cancelled(job, asked)
            self._found.count("cancelled")
        elif kind < 0.33:
            asked["timeout"] = 0.05
            output = self._llm.submit(job.prompt, job.sampling, **asked).result(WAIT)
            self._found.count("with a time limit")
        else:
            output = self._whole(job, asked)
        self._check(place, output)
        return None

    def _wrong(self) -> None:
        asked = dict(self._draw.choice(WRONG))
        self._found.count("wrong")
        try:
            self._llm.submit(asked.pop("prompt"), asked.pop("sampling", None), **asked).result(WAIT)
        except ValueError:
            return
        self._found.fail(f"thread {self._seed}: wrong input was taken: {asked}")

    def _whole(self, job: Job, asked: dict[str, Any]) -> Output:
        way = self._draw.choice(("generate", "submit", "stream", "await"))
        self._found.count(way)
        if way == "generate":
            return self._llm.generate(job.prompt, job.sampling, **asked)
        if way == "stream":
            *_, last = self._llm.stream(job.prompt, job.sampling, **asked)
            assert last.output is not None
            return last.output
        handle = self._llm.submit(job.prompt, job.sampling, **asked)
        if way == "await":
            return asyncio.run(asyncio.wait_for(handle, WAIT))
        return handle.result(WAIT)

    def _cancelled(self, job: Job, asked: dict[str, Any]) -> Output:
        handle = self._llm.submit(job.prompt, job.sampling, **asked)
        if self._draw.random() < 0.5:
            time.sleep(self._draw.random() * 0.1)
        else:
            with closing(iter(handle)) as pieces:
                next(pieces, None)
        handle.cancel()
        return handle.result(WAIT)

    def _check(self, place: int, output: Output) -> None:
        tokens, right = output.token_ids, self._alone[place]
        reason = output.finish_reason
        self._found.count("ended", f"ended by {reason}")
        self._found.count(*["preempted"] * bool(output.metrics.preemptions))
        if reason in ("cancelled", "timeout"):
            right = [alone[: len(tokens)] for alone in right]
        else:
            right = right[:1]
        if tokens not in right:
            self._found.fail(
                f"thread {self._seed}, job {place}, {output.metrics.drafter}: the answer ({reason}) differs"
            )


def make_and_drop(model: str, found: Found, load: dict[str, Any]) -> None:
    """Another LLM, that answers once and is dropped without `close`."""
    other = LLM(model, progress=False, **load)
    other.generate("1 + 1", SamplingParams(max_tokens=4), speculation="off")
    del other
    gc.collect()
    found.count("LLMs dropped")


def answers_alone(llm: LLM, job: Job) -> list[list[int]]:
    """The tokens of the answer, and those that its mode may drop on the way."""
    modes = [job.mode]
    if job.mode.escalate is not None:
        modes.append(job.mode.model_copy(update={"escalate": None}))
    plain = [llm.generate(job.prompt, job.sampling, mode=m, speculation="off") for m in modes]
    return [output.token_ids for output in plain]


def soak(llm: LLM, args: argparse.Namespace, load: dict[str, Any]) -> tuple[Found, list[float]]:
    """Call for `--minutes`; what was found, and memory by the second."""
    jobs = jobs_for(llm, args.jobs, args.seed)
    alone = [answers_alone(llm, job) for job in jobs]
    found, seconds = Found(), 60 * args.minutes
    draft_model = None if args.draft_model == "none" else args.draft_model
    begin = time.monotonic()
    end = begin + seconds
    callers = [
        Caller(llm, draft_model, jobs, alone, found, args.seed + n) for n in range(args.threads)
    ]
    threads = [threading.Thread(target=c.run, args=[end], daemon=True) for c in callers]
    for thread in threads:
        thread.start()
    sizes: list[float] = []
    while (now := time.monotonic()) < end:
        if (now - begin) * (args.drop + 1) > seconds * (found.counts["LLMs dropped"] + 1):
            make_and_drop(args.model, found, load)
        sizes.append(memory())
        time.sleep(min(1.0, seconds / 20))
    for thread in threads:
        thread.join(WAIT)
        if thread.is_alive():
            found.fail("a thread still waits for its call")
    return found, sizes


def main() -> int:
    parser = options(__doc__, "dtype", "quantization", "out", model="abacus")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=32, help="that call")
    parser.add_argument("--jobs", type=int, default=240, help="different calls")
    parser.add_argument(
        "--draft-model", default="abacus-draft", help="for drafter model; none = no"
    )
    parser.add_argument("--pages", type=int, default=40, help="of KV, 16 tokens each")
    parser.add_argument("--drop", type=int, default=5, help="LLMs that are made and dropped")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    load = {name: value for name in ("dtype", "quantization") if (value := getattr(args, name))}
    most = {"kv_memory": pages_in_bytes(args, load), "max_model_len": 16 * args.pages}
    with LLM(args.model, progress=False, **most, **load) as llm:
        found, sizes = soak(llm, args, load)
        time.sleep(0.5)  # the engine gives the last pages back
        stats = llm.stats()
        if stats.pages_used or stats.running or stats.waiting:
            found.fail(f"{stats.pages_used} pages are not back")
    start, later, grew = growth(sizes)
    if grew:
        found.fail(f"memory grew from {start:.0f} to {later:.0f} MiB")
    rows = [(name, str(number)) for name, number in sorted(found.counts.items())]
    rows += [("MiB, second and last fifth of the time", f"{start:.0f}, {later:.0f}")]
    show(("what", "count"), rows, *found.wrong[:20], title=f"{args.minutes:g} minutes")
    write(args.out, counts=found.counts, wrong=found.wrong, memory=sizes)
    return 1 if found.wrong else 0


def pages_in_bytes(args: argparse.Namespace, load: dict[str, Any]) -> int:
    """Memory of `--pages`."""
    with LLM(args.model, progress=False, **load) as llm:
        return int(16 * args.pages * llm.model.config.kv_bytes_per_token(llm.model.dtype))


if __name__ == "__main__":
    sys.exit(main())
