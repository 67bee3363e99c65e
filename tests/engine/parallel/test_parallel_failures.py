"""Whatever goes wrong with a rank: one sentence soon, no rank left behind, and no rank started in vain; and torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from checkpoints import write_dense, write_moge
from parallel_tools import SOON, gone, open_llm
from tokenizers_tiny import edit, write_bpe
from tune_tools import TEMPLATE

from fastslow import LLM, Parallel, SamplingParams
from fastslow.engine.parallel import model as parallel_model
from fastslow.engine.parallel.commands import Command, pack, unpack
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
        died.append(time.monotonic())
        os.kill(pid, signal.SIGKILL)

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


def test_rank_0_calls_nothing_else() -> None:
    for method in ("__init__", "decoder", "eval"):
        with pytest.raises(ValueError, match=f"rank 0 calls '{method}', and may call open, free"):
            list(unpack(pack([Command("forward", ()), Command(method, ())])))


@pytest.mark.slow
def test_what_fails_inside_a_rank_is_told_and_closing_ends_all(tiny_moge: Path) -> None:
    with open_llm(tiny_moge, "dp=2") as llm:
        model = shared(llm)
        pids = model.pids
        model._rank_group.send(pack([Command("free", (999,))]))
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
def test_an_llm_that_cannot_be_built_leaves_no_rank(tiny_moge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_torchrun_must_have_started_as_many_ranks(tiny_moge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="ep=2,tp=1,dp=1 takes 2 ranks, torchrun started 4"):
        open_llm(tiny_moge)


def test_one_rank_is_no_rank(tiny_moge: Path) -> None:
    for parallel in (Parallel(), "ep=1", "auto", None):
        with open_llm(tiny_moge, parallel) as llm:
            assert not isinstance(llm.model, ParallelModel)


# Programs of several ranks: torchrun, and ranks without a parent


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that talks, and answers until it is stopped."""
    made = tmp_path_factory.mktemp("spoken")
    write_bpe(made, TEMPLATE, 320)
    edit(made / "tokenizer_config.json", eos_token=None)
    return write_moge(made, vocab=320, eos_token_id=None, max_position_embeddings=65536)


def command(spoken: Path, *arguments: str) -> list[str]:
    options = ["--dtype", "float32", "--kv-memory", "16MiB", "--max-model-len", "2048"]
    wish = ["--model", str(spoken), *options, "--drafter", "off", *arguments]
    return ["-m", "fastslow.tools.cli.__main__", "generate", "Every expert answers", *wish]


def torchrun(count: int, *arguments: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    return [*launcher, "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint",
            "127.0.0.1:0", *arguments]  # fmt: skip


def children(pid: int) -> set[int]:
    """Of a process, and theirs."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()[1:]]
    found = {pid}
    while more := {child for child, parent in pairs if parent in found} - found:
        found |= more
    return found - {pid}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("launcher", ["own", "torchrun"])
def test_no_rank_outlives_the_one_that_asked(spoken: Path, launcher: str, how: str) -> None:
    asked = command(spoken, "--max-tokens", "1900")
    line = [sys.executable, *asked, "--parallel", "ep=2"] if launcher == "own" else torchrun(2, *asked)
    # where the tests themselves run in the background, Ctrl-C is ignored, and so it would be in the child
    process = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert process.stdout is not None
    assert process.stdout.read(1), "it answers"
    others = children(process.pid)
    assert others
    process.send_signal(getattr(signal, how))
    process.communicate(timeout=60)
    assert gone(others)
    if launcher == "own" and how == "SIGINT":
        assert process.returncode == 130


@pytest.mark.slow
def test_torchrun_says_what_one_process_says(spoken: Path) -> None:
    asked = command(spoken, "--max-tokens", "40", "--json")
    alone = subprocess.run([sys.executable, *asked], capture_output=True, text=True, check=True)
    shared = subprocess.run(torchrun(2, *asked), capture_output=True, text=True, check=True)
    assert json.loads(shared.stdout)["token_ids"] == json.loads(alone.stdout)["token_ids"]
    assert "2 ranks run plain torch" in shared.stderr
