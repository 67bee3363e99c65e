"""Programs that fork, or run a notebook's cell: started by the tests with a model's
folder and the name of one of these functions."""

import gc
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import torch

from fastslow import LLM, SamplingParams, as_completed

FOLDER = sys.argv[1] if len(sys.argv) > 1 else ""
FEW = SamplingParams(max_tokens=6, ignore_eos=True)
PATIENCE = 30  # seconds for a child


def make() -> LLM:
    return LLM(FOLDER, kv_memory="4MiB", progress=False)


def ask(llm: LLM) -> list[int]:
    torch.ones(1 << 20).sum()  # on all of torch's threads
    return llm.generate("one two", FEW).token_ids


def refused(call: Callable[[], object]) -> None:
    try:
        call()
    except RuntimeError as error:
        assert "made in another process" in str(error), error
    else:
        raise AssertionError("it was not refused")


def in_child(work: Callable[[], object]) -> None:
    """Run it in a forked process, which then ends as a program does."""
    if (pid := os.fork()) == 0:
        signal.alarm(PATIENCE)
        work()
        sys.exit(0)
    ended = os.waitpid(pid, 0)[1]
    assert ended == 0, f"the child ended with status {ended}"


def fork() -> None:
    """The parent's LLM is refused, a new one answers, and the parent runs on; twice, and in a grandchild."""
    llm = make()
    right = ask(llm)
    long = SamplingParams(max_tokens=400, ignore_eos=True)
    stream = llm.stream("one two", long)
    next(stream)

    def use() -> None:
        for call in (lambda: ask(llm), lambda: next(llm.stream("one two")), llm.forget_prompts):
            refused(call)
        refused(lambda: next(stream))
        for wait in (handle.result, lambda: list(handle), lambda: list(as_completed([handle]))):
            refused(wait)
        with make() as own:
            assert ask(own) == right
            in_child(lambda: refused(lambda: ask(own)))
        llm.close()
        gc.collect()

    for _ in range(2):
        handle = llm.submit("one two", long)
        in_child(use)
        assert ask(llm) == right
    assert len(list(stream)) > 1
    llm.close()


def drop() -> None:
    """A child that lets go of the parent's LLM, and one that only ends."""
    llms = [make()]
    right = ask(llms[0])

    def let_go() -> None:
        llms.clear()
        gc.collect()
        with make() as own:
            assert ask(own) == right

    in_child(let_go)
    in_child(lambda: None)
    assert ask(llms[0]) == right


def busy() -> None:
    """Children of a parent that answers meanwhile."""
    llm = make()
    right, over = ask(llm), threading.Event()

    def answer() -> None:
        while not over.is_set():
            assert ask(llm) == right

    threads = [threading.Thread(target=answer) for _ in range(2)]
    for thread in threads:
        thread.start()

    def use() -> None:
        with make() as own:
            assert ask(own) == right

    for _ in range(5):
        in_child(use)
    over.set()
    for thread in threads:
        thread.join()


def ranks() -> None:
    """A child does not end the parent's ranks, nor talk to them."""
    llm = LLM(FOLDER, kv_memory="4MiB", progress=False, parallel="tp=2")
    right = ask(llm)

    def use() -> None:
        refused(lambda: ask(llm))
        llm.close()

    in_child(use)
    in_child(lambda: None)
    assert ask(llm) == right
    llm.close()


def notebook() -> None:
    """A cell that is run five times: one name, no close, and no garbage collection to help. A stream is
    left half-way, and an answer in flight."""
    gc.collect()
    gc.disable()
    cell: dict[str, object] = {}
    source = (
        "llm = LLM(FOLDER, kv_memory='64MiB', progress=False)\n"
        "out = llm.generate(['one two'] * 3, FEW, speculation=['auto', 'self', 'off'])\n"
        "stream = llm.stream('one two', SamplingParams(max_tokens=400, ignore_eos=True))\n"
        "piece = next(stream)\n"
    )
    held, models = list[int](), list[weakref.ref[object]]()
    for _ in range(7):
        exec(source, {**globals()}, cell)  # noqa: S102
        models.append(weakref.ref(cell["llm"].model))  # type: ignore[attr-defined]
        held.append(_resident())
    assert sum(model() is not None for model in models) <= 2, "models are kept"
    assert held[-1] - held[2] < 24 << 20, [size >> 20 for size in held]
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("fastslow-engine") <= 2, names
    cell.clear()
    for thread in threading.enumerate():
        if thread.name == "fastslow-engine":
            thread.join(10)
    assert not any(model() for model in models), "the last model is kept"
    assert "fastslow-engine" not in [thread.name for thread in threading.enumerate()]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    globals()[sys.argv[2]]()
