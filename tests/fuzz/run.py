"""Fuzz the loaders: `python tests/fuzz/run.py --cases 5000 --seed 0`.

Damaged checkpoints of every kind are loaded and used, many in a process, under the address sanitizer
and a limit of memory. A case may be refused in one sentence, or answer as plain decoding does. All else
is a finding: its folder is kept, with what happened, and `--only N` runs it again.
"""

import argparse
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "fuzz")]

import torch
from bases import KINDS, make_bases
from loguru import logger
from mutate import mutate
from trial import Finding, Trial

from fastslow.engine.backends.cpu import library
from fastslow.engine.backends.cpu.formats import Format

SECONDS = 10  # of the processor, which others may use as well
WAIT = 60  # seconds of a case that sleeps
MEMORY = 4 << 30  # bytes of a process
SANITIZED = "native+sanitize"  # level of the kernels
NOTE = "finding.txt"  # in a case's folder
SANITIZER = (  # Python leaks on purpose; gcc 12 misaligns 64-byte locals on its fake stack
    "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1:handle_segv=1:"
    f"max_allocation_size_mb={MEMORY >> 20}:hard_rss_limit_mb={MEMORY >> 20}:quarantine_size_mb=16"
)


@dataclass(frozen=True)
class Plan:
    """The cases to run, their folder, whether under the address sanitizer, and their kinds."""

    folder: Path
    cases: range
    seed: int
    sanitize: bool = True
    kinds: tuple[str, ...] = tuple(sorted(KINDS))

    def case(self, number: int) -> Path:
        return self.folder / "cases" / f"{self.seed}-{number}"


def sanitized() -> dict[str, str] | None:
    """The environment of a process for the address sanitizer; None where the compiler has none."""
    compiler, paths = library.find_compiler(), []
    # without the second the first finds nothing after an exception that kernels throw
    for name in ("libasan.so", "libstdc++.so"):
        paths.append(subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip())
    if not all(Path(path).is_absolute() for path in paths):
        return None
    return {
        "FASTSLOW_KERNELS": SANITIZED, "LD_PRELOAD": " ".join(paths), "ASAN_OPTIONS": SANITIZER,
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }  # fmt: skip


def make_case(plan: Plan, number: int) -> tuple[Path, str, list[str]]:
    """Write the folder of a case; its kind, and how it was damaged."""
    random = Random(f"{plan.seed} {number}")
    kind = random.choice(plan.kinds)
    folder = plan.case(number)
    shutil.rmtree(folder, ignore_errors=True)
    if (odd := KINDS[kind].odd) is None:
        shutil.copytree(plan.folder / "bases" / kind, folder)
    else:
        odd(folder / "model", random)
        if random.random() < 0.7:
            return folder, kind, []
    return folder, kind, mutate(folder, random)


def child(plan: Plan) -> None:
    """Run cases one after the other; a line of JSON before and after each."""
    logger.remove()
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGPROF, chain=True)  # says where it was, and ends
    if library.available():  # from the usual cache; what cases make goes elsewhere
        library.kernels_with(Format.Q8_0)  # the part for GGUF files, too
    status, peaks = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    with tempfile.TemporaryDirectory(prefix="fuzz.") as cache:
        os.environ["FASTSLOW_CACHE"] = cache
        for number in plan.cases:
            folder, kind, done = make_case(plan, number)
            print(json.dumps({"case": number, "kind": kind, "done": done}), flush=True)
            faulthandler.dump_traceback_later(WAIT, exit=True)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            if peaks.is_file():
                peaks.write_text("5")  # the most memory so far is forgotten
            trial, found = Trial(folder, KINDS[kind]), ""
            try:
                trial.run()
            except Finding as finding:
                found = str(finding)
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_PROF, 0)
            lines = status.read_text().splitlines() if status.is_file() else []
            peak = max((int(x.split()[1]) << 10 for x in lines if x.startswith("VmHWM")), default=0)
            if peak > MEMORY:
                found += f"\n{peak >> 20} MiB of memory were taken"
            if found:
                (folder / NOTE).write_text(json.dumps(done, indent=1) + "\n" + found)
            else:
                shutil.rmtree(folder, ignore_errors=True)
            said = {"refused": bool(trial.refused), "answered": bool(trial.answers)}
            print(json.dumps({"ended": number, "found": found, **said}), flush=True)
            for made in Path(cache).iterdir():
                shutil.rmtree(made, ignore_errors=True)


@dataclass
class Outcome:
    """The outcome of the cases: how often a sentence refused something, how often there was an answer, and what
    happened by the number of a case that found something."""

    ran: int = 0
    refused: int = 0
    answered: int = 0
    findings: dict[int, str] = field(default_factory=dict)

    def add(self, said: dict[str, Any]) -> None:
        """The line of a case that ended."""
        self.ran += 1
        self.refused += said["refused"]
        self.answered += said["answered"]
        if said["found"]:
            self.found(said["ended"], said["found"])

    def found(self, number: int, text: str) -> None:
        self.findings[number] = text
        print(f"case {number}: {text.strip()[:200]}", flush=True)


def fuzz(plan: Plan, processes: int = 2) -> Outcome:
    """Run all cases of a plan."""
    make_bases(plan.folder / "bases")
    if plan.sanitize:
        library.build(SANITIZED)  # once, and not in every process
    outcome, cases = Outcome(), plan.cases
    shares = [replace(plan, cases=cases[n::processes]) for n in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(lambda share: _watched(share, outcome), shares))
    return outcome


def _watched(plan: Plan, outcome: Outcome) -> None:
    """Run the cases in a process; one that dies names its case, and the rest run in a new one."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables |= (sanitized() or {}) if plan.sanitize else {}
    left, log = plan.cases, plan.folder / f"log-{plan.cases.start}"
    while left:
        share = [str(plan.folder), plan.seed, plan.kinds, left.start, left.stop, left.step]
        command = [sys.executable, __file__, "--child", json.dumps(share)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "env": variables, "cwd": ROOT}
        last: int | None = None
        ended = False
        with log.open("w") as errors, subprocess.Popen(command, stderr=errors, **pipes) as process:
            for said in map(json.loads, process.stdout or ()):
                ended = "ended" in said
                if ended:
                    outcome.add(said)
                else:
                    last, left = said["case"], left[1:]
        if not process.returncode:
            return
        text = f"the process ended with {process.returncode}\n{log.read_text()[:9000]}"
        if last is None:
            raise RuntimeError(f"the fuzzer itself fails: {text}")
        if plan.case(last).is_dir():
            (plan.case(last) / NOTE).write_text(text)
        outcome.ran += not ended  # it may also die of memory right after a case
        outcome.found(last, text)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        folder, seed, kinds, *cases = json.loads(sys.argv[2])
        child(Plan(Path(folder), range(*cases), seed, kinds=tuple(kinds)))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="up to this number")
    parser.add_argument("--only", type=int, help="this one alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where findings are kept; default: a new one")
    parser.add_argument("--plain", action="store_true", help="without the sanitizer")
    parser.add_argument("--kinds", default=",".join(sorted(KINDS)), help="of these alone, such as gguf,mtp")
    given = parser.parse_args()
    cases = range(given.cases) if given.only is None else range(given.only, given.only + 1)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="fz"))
    outcome = fuzz(Plan(folder, cases, given.seed, not given.plain, tuple(given.kinds.split(","))))
    counts = f"{outcome.ran} cases, {outcome.refused} refused in part or whole, {outcome.answered}"
    print(f"{counts} answered, {len(outcome.findings)} findings; folder {folder}")
    sys.exit(bool(outcome.findings))


if __name__ == "__main__":
    main()
