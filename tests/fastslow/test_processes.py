"""Forked and spawned processes, web servers, and cells of notebooks."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
import weakref
from functools import partial
from pathlib import Path

import pytest
from gate import open_llm

from fastslow.engine.params import SamplingParams

SUPPORT = Path(__file__).parents[1] / "support"
VOCAB = 320
PATIENCE = 120  # seconds for a process
WAIT = 60  # seconds for an answer
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
slow = partial(pytest.param, marks=pytest.mark.slow)


def environment(**more: str) -> dict[str, str]:
    here = [str(SUPPORT), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(here), "OMP_NUM_THREADS": "2", **more}


def run(folder: Path, what: str, **more: str) -> None:
    """One of the programs of support/processes.py."""
    command = [sys.executable, str(SUPPORT / "processes.py"), str(folder), what]
    done = subprocess.run(
        command,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@forks
@pytest.mark.parametrize(
    ("what", "kernels"),
    [
        ("fork", "native"),
        *(slow(what, "native") for what in ("drop", "busy")),
        *(slow(what, "off") for what in ("fork", "drop", "busy")),
    ],
)
def test_an_llm_answers_in_its_own_process_and_a_new_one_in_a_forked_one(
    folder: Path, what: str, kernels: str
) -> None:
    run(folder, what, FASTSLOW_KERNELS=kernels)


@pytest.mark.slow
@forks
def test_generate_loads_its_model_again_in_a_forked_process(folder: Path) -> None:
    run(folder, "shared")


@pytest.mark.slow
@forks
def test_a_forked_process_leaves_the_ranks_of_its_parent_alone(folder: Path) -> None:
    run(folder, "ranks")


@pytest.mark.slow
def test_a_spawned_process_answers(folder: Path) -> None:
    run(folder, "spawn")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("kernels", ["native", slow("off")])
def test_a_cell_that_is_run_again_keeps_no_model(folder: Path, kernels: str) -> None:
    run(folder, "notebook", FASTSLOW_KERNELS=kernels)


@pytest.mark.slow
@forks
@pytest.mark.skipif(
    importlib.util.find_spec("gunicorn") is None, reason="gunicorn is not installed"
)
@pytest.mark.parametrize(
    "preload", [slow([], id="each"), pytest.param(["--preload"], id="preload")]
)
def test_workers_of_gunicorn_answer(folder: Path, preload: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "gunicorn", "-w", "2", "-b", address, *preload, "wsgi_app"]
    server = subprocess.Popen(command, env=environment(FOLDER=str(folder)))
    try:
        answers = [_get(f"http://{address}/one two".replace(" ", "%20")) for _ in range(4)]
    finally:
        server.terminate()
        server.wait(20)
    firsts, others = zip(*(text.split("\n") for text in answers))
    assert len({text.partition(" ")[2] for text in (*firsts, *others)}) == 1, answers
    loaded, answered = ({int(text.split()[0]) for text in some} for some in (firsts, others))
    assert server.pid not in answered
    assert loaded == {server.pid} if preload else loaded == answered


def _get(url: str) -> str:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return str(answer.read().decode())
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
        except OSError as error:  # refused: it is not there yet
            if time.monotonic() > deadline or isinstance(error, TimeoutError):
                raise
        time.sleep(0.1)


def test_an_answer_in_flight_of_a_dropped_llm_ends(folder: Path) -> None:
    llm = open_llm(folder)
    params = SamplingParams(max_tokens=490, ignore_eos=True)
    handle = llm.submit("one two", params)
    left = llm.stream("one two", params)
    assert next(left).token_ids
    thread, model = llm._worker._thread, weakref.ref(llm.model)
    del llm, left
    assert handle.result(WAIT).finish_reason == "length"  # who holds a handle waits for it
    thread.join(10)
    assert not thread.is_alive() and model() is None
    assert handle.result().finish_reason == "length"


def test_a_broken_llm_that_is_dropped_is_freed(folder: Path) -> None:
    llm = open_llm(folder)
    llm.generate("one two", SamplingParams(max_tokens=3), speculation="self")

    def fail() -> None:
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="SystemExit"):
        llm._worker.between_steps(fail)
    llm._worker._thread.join(10)
    model = weakref.ref(llm.model)
    del llm
    assert model() is None
