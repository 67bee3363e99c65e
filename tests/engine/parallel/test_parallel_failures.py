"""Whatever goes wrong with a rank: one sentence soon, no rank left behind, and no rank started in vain."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from checkpoints import write_dense, write_moge
from parallel_tools import SOON, gone, open_llm

from fastslow import LLM, Parallel, SamplingParams
from fastslow.engine.parallel import model as parallel_model
from fastslow.engine.parallel.commands import Command, CommandKind, fields, pack
from fastslow.engine.parallel.model import ParallelModel
from fastslow.output import GenerationError

LONG = SamplingParams(max_tokens=400, ignore_eos=True)
FEW = SamplingParams(max_tokens=4, ignore_eos=True)


def shared(llm: LLM) -> ParallelModel:
    assert isinstance(llm.model, ParallelModel)
    return llm.model


def kill_soon(pid: int, after: float = 0.3) -> list[float]:
    """Kill a process a little later; its time of death will be in the list."""
    died: list[float] = []

    def kill() -> None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
        died.append(time.monotonic())

    threading.Thread(target=kill).start()
    return died


def test_a_killed_rank_ends_the_job_with_one_sentence(tiny_moge: Path) -> None:
    with open_llm(tiny_moge) as llm:
        pids = shared(llm).pids
        assert len(llm.generate([5, 6, 7], FEW).token_ids) == 4
        died = kill_soon(pids[1])
        with pytest.raises(GenerationError, match=r"rank 1 \(process \d+\) was killed by signal 9"):
            while True:
                llm.generate([[5, 6, 7]], LONG)
        assert time.monotonic() - died[0] < SOON
        assert gone(pids.values())
        with pytest.raises(GenerationError, match="was killed by signal 9"):
            llm.generate([5, 6, 7], FEW)
    assert not dist.is_initialized()


@pytest.mark.slow
def test_what_fails_inside_a_rank_is_told_and_closing_ends_all(tiny_moge: Path) -> None:
    with open_llm(tiny_moge, "dp=2") as llm:
        model = shared(llm)
        pids = model.pids
        model._rank_group.send(pack([Command(CommandKind.FREE, fields([999]))]))
        with pytest.raises(GenerationError, match="rank 1 failed: KeyError: 999"):
            llm.generate([5, 6, 7], FEW)
        assert gone(pids.values())
    with open_llm(tiny_moge, "dp=2") as llm:
        pids = shared(llm).pids
        assert len(llm.generate([5, 6, 7], FEW).token_ids) == 4
        with pytest.raises(ValueError, match="in a torch.distributed group already"):
            open_llm(tiny_moge)
    assert gone(pids.values())
    llm.close()


@pytest.mark.slow
def test_an_llm_that_cannot_be_built_leaves_no_rank(
    tiny_moge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[ParallelModel] = []
    real = parallel_model.load_parallel

    def load(*arguments: Any, **options: Any) -> ParallelModel:
        opened.append(real(*arguments, **options))
        return opened[0]

    monkeypatch.setattr(parallel_model, "load_parallel", load)
    with pytest.raises(ValueError, match="kv_memory is 1.0 KiB"):
        open_llm(tiny_moge, kv_memory="1KiB")
    assert gone(opened[0].pids.values())
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("parallel", "fields", "sentence"),
    [
        (Parallel(ep=3), {}, "ep=3 does not divide the 4 groups of experts"),
        (Parallel(tp=3), {}, "tp=3 does not divide the 4 heads over 2 KV heads"),
        ("tp=8", {}, "tp=8 does not divide the 4 heads"),
        (Parallel(dp=64), {}, "moe_intermediate_size 32 must be a multiple of tp \\* dp"),
        ("dp=3", {"moe_intermediate_size": 48}, "shared_expert_intermediate_size 64 must be a mul"),
        ("ep=2", {"dense": True}, "ep=2 needs a model with routed experts, this one is dense"),
        ("dp=7", {"dense": True}, "intermediate_size 96 must be a multiple of the ranks"),
        ("ep=0", {}, "ep=0 must be greater than or equal to 1"),
        ("ep=2,pp=2", {}, "names 'pp'"),
        ("ep=2,ep=2", {}, "names ep twice"),
        ("ep=two", {}, "ep must be a whole number of at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_rank_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: Any, fields: Any, sentence: str
) -> None:
    monkeypatch.setattr(parallel_model, "_started", lambda *_: pytest.fail("a rank was started"))
    write = write_dense if fields.pop("dense", False) else write_moge
    with pytest.raises(ValueError, match=sentence):
        open_llm(write(tmp_path, **fields), parallel)


def test_quantization_is_for_one_rank(tiny_moge: Path) -> None:
    for option in ("quantization", "kv_dtype"):
        with pytest.raises(ValueError, match=f"{option} 'int8' runs on one rank only"):
            open_llm(tiny_moge, **{option: "int8"})


def test_torchrun_must_have_started_as_many_ranks(
    tiny_moge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="ep=2,tp=1,dp=1 takes 2 ranks, torchrun started 4"):
        open_llm(tiny_moge)


def test_one_rank_is_no_rank(tiny_moge: Path) -> None:
    for parallel in (Parallel(), "ep=1", "auto", None):
        with open_llm(tiny_moge, parallel) as llm:
            assert not isinstance(llm.model, ParallelModel)
