"""Forked processes, and cells of notebooks."""

import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from gate import open_llm

from fastslow.engine.params import SamplingParams

SUPPORT = Path(__file__).parents[1] / "support"
PATIENCE = 120  # seconds for a process
WAIT = 60  # seconds for an answer
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def run(folder: Path, what: str, **more: str) -> None:
    """Run one of the programs of support/processes.py."""
    here = [str(SUPPORT), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(here), "OMP_NUM_THREADS": "2", **more}
    command = [sys.executable, str(SUPPORT / "processes.py"), str(folder), what]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@forks
def test_an_llm_answers_in_its_own_process_and_a_new_one_in_a_forked_one(folder: Path) -> None:
    run(folder, "fork")


@pytest.mark.slow
@forks
@pytest.mark.parametrize(
    ("what", "kernels"),
    [(what, "native") for what in ("drop", "busy", "ranks", "notebook")]
    + [(what, "off") for what in ("fork", "drop", "busy", "notebook")],
)
def test_what_programs_do_with_processes(folder: Path, what: str, kernels: str) -> None:
    run(folder, what, FASTSLOW_KERNELS=kernels)


def test_an_answer_in_flight_of_a_dropped_llm_ends(folder: Path) -> None:
    llm = open_llm(folder)
    params = SamplingParams(max_tokens=490, ignore_eos=True)
    handle = llm.submit("one two", params)
    left = llm.stream("one two", params)
    assert next(left).token_ids
    thread, model = llm._worker._thread, weakref.ref(llm.model)
    del llm, left
    assert handle.result(WAIT).finish_reason == "length"  # who holds a handle waits for it
    thread.join(60)
    assert not thread.is_alive() and model() is None and handle.result().finish_reason == "length"


def test_a_broken_llm_that_is_dropped_is_freed(folder: Path) -> None:
    llm = open_llm(folder)
    llm.generate("one two", SamplingParams(max_tokens=3), speculation="self")

    def fail() -> None:
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="SystemExit"):
        llm._worker.between_steps(fail)
    llm._worker._thread.join(60)
    model = weakref.ref(llm.model)
    del llm
    assert model() is None
