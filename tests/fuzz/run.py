"""Fuzz the loaders: `python tests/fuzz/run.py --cases 5000 --seed 0`.

Damaged checkpoints of every kind are loaded and used, many in a process, under the address sanitizer
and a limit of memory. A case may be refused in one sentence, or answer as plain decoding does. All else
is a finding: its folder is kept, with what happened, and `--only N` runs it again.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "fuzz")]

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
    """Which cases run, and where.

    Attributes:
        folder: of the bases, the cases and what is found.
        sanitize: whether the kernels and all memory run under the address sanitizer.
    """

    folder: Path
    cases: range
    seed: int
    sanitize: bool = True


def sanitized() -> dict[str, str] | None:
    """What a process needs for the address sanitizer; None where the compiler has none."""
    from fastslow.engine.backends.cpu import library

    compiler = library.find_compiler()
    # the second: without it the first finds nothing behind an exception that kernels throw
    paths = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [compiler, f"-print-file-name={name}"]
        paths.append(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        )
    if not all(Path(path).is_absolute() for path in paths):
        return None
    return {
        "FASTSLOW_KERNELS": SANITIZED,
        "LD_PRELOAD": " ".join(paths),
        "ASAN_OPTIONS": SANITIZER,
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def make_case(plan: Plan, number: int) -> tuple[Path, str, list[str]]:
    """Write the folder of a case; its kind, and how it was damaged."""
    from bases import KINDS
    from mutate import mutate

    random = Random(f"{plan.seed} {number}")
    kind = random.choice(sorted(KINDS))
    folder = plan.folder / "cases" / f"{plan.seed}-{number}"
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
    import torch
    from bases import KINDS
    from loguru import logger
    from trial import Finding, Trial

    from fastslow.engine.backends.cpu import library

    logger.remove()
    torch.set_num_threads(1)
    faulthandler.register(signal.SIGPROF, chain=True)  # says where it was, and ends
    library.available()  # from the usual cache; what cases make goes elsewhere
    with tempfile.TemporaryDirectory(prefix="fuzz.") as cache:
        os.environ["FASTSLOW_CACHE"] = cache
        for number in plan.cases:
            folder, kind, done = make_case(plan, number)
            _say(case=number, kind=kind, done=done)
            faulthandler.dump_traceback_later(WAIT, exit=True)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            _forget_peak()
            started = time.process_time()
            trial = Trial(folder, KINDS[kind])
            try:
                trial.run()
                found = ""
            except Finding as finding:
                found = str(finding)
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_PROF, 0)
            seconds = time.process_time() - started
            if (peak := _peak()) > MEMORY:
                found += f"\n{peak >> 20} MiB of memory were taken"
            if found:
                (folder / NOTE).write_text(json.dumps(done, indent=1) + "\n" + found)
            else:
                shutil.rmtree(folder, ignore_errors=True)
            _say(
                ended=number,
                found=found,
                refused=len(trial.refused),
                answers=trial.answers,
                seconds=seconds,
                peak=peak,
            )
            for made in Path(cache).iterdir():
                shutil.rmtree(made, ignore_errors=True)


def _say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def _forget_peak() -> None:
    path = Path("/proc/self/clear_refs")
    if path.is_file():
        path.write_text("5")


def _peak() -> int:
    """The most memory since it was last forgotten, in bytes."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((int(x.split()[1]) << 10 for x in lines if x.startswith("VmHWM")), 0)


@dataclass
class Tally:
    """What came of the cases.

    Attributes:
        refused: where a sentence said what does not fit.
        answered: where there was an answer.
        findings: number of the case, and what happened.
    """

    ran: int = 0
    refused: int = 0
    answered: int = 0
    slowest: float = 0.0
    largest: int = 0
    findings: dict[int, str] = field(default_factory=dict)

    def add(self, said: dict[str, Any]) -> None:
        """The line of a case that ended."""
        self.ran += 1
        self.refused += bool(said["refused"])
        self.answered += bool(said["answers"])
        self.slowest = max(self.slowest, said["seconds"])
        self.largest = max(self.largest, said["peak"])
        if said["found"]:
            self.found(said["ended"], said["found"])

    def found(self, number: int, text: str) -> None:
        self.findings[number] = text
        print(f"case {number}: {text.strip()[:200]}", flush=True)


def fuzz(plan: Plan, processes: int = 2) -> Tally:
    """Run all cases of a plan."""
    from bases import make_bases

    from fastslow.engine.backends.cpu import library

    make_bases(plan.folder / "bases")
    if plan.sanitize:
        library.build(SANITIZED)  # once, and not in every process
    tally, cases = Tally(), plan.cases
    shares = [replace(plan, cases=cases[n::processes]) for n in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(lambda share: _watched(share, tally), shares))
    return tally


def _watched(plan: Plan, tally: Tally) -> None:
    """Run the cases in a process; one that dies names its case, and the rest run in a new one."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    variables |= (sanitized() or {}) if plan.sanitize else {}
    command = [
        sys.executable,
        __file__,
        "--child",
        f"--folder={plan.folder}",
        f"--seed={plan.seed}",
    ]
    left, log = plan.cases, plan.folder / f"log-{plan.cases.start}"
    while left:
        share = [f"--first={left.start}", f"--cases={left.stop}", f"--step={left.step}"]
        last: int | None = None
        ended = False
        with (
            log.open("w") as errors,
            subprocess.Popen(
                [*command, *share], stdout=subprocess.PIPE, stderr=errors, env=variables, cwd=ROOT
            ) as process,
        ):
            for said in map(json.loads, process.stdout or ()):
                ended = "ended" in said
                if ended:
                    tally.add(said)
                else:
                    last, left = said["case"], left[1:]
        if not process.returncode:
            return
        text = f"the process ended with {process.returncode}\n{log.read_text()[:9000]}"
        if last is None:
            raise RuntimeError(f"the fuzzer itself fails: {text}")
        folder = plan.folder / "cases" / f"{plan.seed}-{last}"
        if folder.is_dir():
            (folder / NOTE).write_text(text)
        tally.ran += not ended  # it may also die of memory right behind a case
        tally.found(last, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="up to this number")
    parser.add_argument("--first", type=int, default=0, help="from this number on")
    parser.add_argument("--step", type=int, default=1, help="every so many")
    parser.add_argument("--only", type=int, help="this one alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where findings are kept; default: a new one")
    parser.add_argument("--plain", action="store_true", help="without the sanitizer")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only is not None:
        given.first, given.cases = given.only, given.only + 1
    folder = given.folder or Path(tempfile.mkdtemp(prefix="fz"))
    plan = Plan(folder, range(given.first, given.cases, given.step), given.seed, not given.plain)
    if given.child:
        child(plan)
        return
    started = time.perf_counter()
    tally = fuzz(plan)
    print(
        f"{tally.ran} cases, {tally.refused} refused in part or whole, {tally.answered} answered, {len(tally.findings)} findings in "
        f"{time.perf_counter() - started:.0f} s; slowest {tally.slowest:.1f} s of the processor, largest "
        f"{tally.largest >> 20} MiB; folder {folder}"
    )
    sys.exit(bool(tally.findings))


if __name__ == "__main__":
    main()
