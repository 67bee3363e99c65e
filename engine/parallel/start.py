"""Ranks begin: started by this process, or found where `torchrun` started them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from loguru import logger
from torch._C._distributed_c10d import FileStore
from torch.distributed.distributed_c10d import Store

from fastslow.engine.backends.device import choose_device
from fastslow.engine.backends.loader import pick_dtype
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.checkpoint.quantised import Scheme
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.parallel.model import ParallelModel
from fastslow.engine.parallel.rank_group import RankError, RankGroup
from fastslow.engine.parallel.sharding import Parallel, RankShard
from fastslow.engine.parallel.torchrun import Launched
from fastslow.engine.parallel.worker import RankJob

_INTERFACE = "GLOO_SOCKET_IFNAME"


def load_parallel(
    folder: Path,
    parallel: Parallel,
    dtype: str = "auto",
    device: str = "auto",
    progress: bool = True,
    quantization: str = "none",
    kv_dtype: str = "auto",
) -> ParallelModel:
    """The model in `folder` on `parallel.ranks` ranks, of which this process is the first.

    Under torchrun the other ranks are its processes, else this process starts them, and they end with it. The
    other arguments are those of `load_model`. ValueError: the model cannot be shared so. RankError: a rank failed."""
    config = ModelConfig.from_folder(folder)
    shard = RankShard.all(config, parallel)[0]
    found = choose_device(device)
    where = found.device
    picked = pick_dtype(dtype, config, found)
    if quantization not in ("none", "auto"):
        raise ValueError(f"quantization {quantization!r} runs on one rank only: leave parallel out")
    if Scheme.from_folder(folder) is not None:
        raise ValueError(f"{folder} is quantised, which runs on one rank only: leave parallel out")
    if kv_dtype not in ("auto", "model"):
        raise ValueError(f"kv_dtype {kv_dtype!r} runs on one rank only: leave parallel out")
    if dist.is_initialized():
        raise ValueError(
            "this process is in a torch.distributed group already: close the LLM that runs in "
            "parallel, or leave the group"
        )
    Checkpoint.open(folder, config)
    launched = Launched.from_environment()
    if launched is not None and launched.ranks != parallel.ranks:
        raise ValueError(
            f"parallel {parallel} takes {parallel.ranks} ranks, torchrun started {launched.ranks}"
        )
    _say(shard, where)
    job = RankJob(
        str(folder.resolve()), parallel.model_dump(), str(picked).removeprefix("torch."), where.type
    )
    if launched is None:
        rank_group, store = _started(parallel.ranks)
    else:  # processes of torchrun, which wait for this one's address
        listener, token, store = launched.listen()
        rank_group = RankGroup(listener, token, launched.ranks - 1, {}, lambda: None)
    try:
        rank_group.send_job(asdict(job))
        local = 0 if launched is None else launched.local
        with job.process_group(0, local, store):
            worker = job.worker(0, local, progress)
            rank_group.wait_loaded()
            return ParallelModel(worker, rank_group, picked)
    except BaseException as error:
        # this rank's collectives fail at once where another one is gone, before that is noticed
        if isinstance(error, RuntimeError) and rank_group.failed_soon():
            raise RankError(rank_group.failure) from error
        rank_group.close()
        raise


def _say(shard: RankShard, device: torch.device) -> None:
    c, parallel = shard.config, shard.parallel
    if shard.attention < parallel.ep * parallel.tp:
        logger.info(
            "{} heads over {} KV heads do not divide by ep * tp = {}: attention runs {} times side by "
            "side, each for other requests",
            c.heads,
            c.kv_heads,
            parallel.ep * parallel.tp,
            shard.dp_ranks,
        )
    if device.type == "cpu":
        logger.info("{} ranks run plain torch: the CPU kernels are for one rank", parallel.ranks)


def _started(ranks: int) -> tuple[RankGroup, Store]:
    room = Path(tempfile.mkdtemp(prefix="fastslow-"))  # no other user may read it
    listener, token = socket.create_server(("127.0.0.1", 0)), secrets.token_hex(16)
    threads, undo = _settle(ranks)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "OMP_NUM_THREADS": str(threads),
    }
    processes: dict[int, subprocess.Popen[bytes]] = {}

    def ended() -> None:
        undo()
        shutil.rmtree(room, ignore_errors=True)

    try:
        for rank in range(1, ranks):
            given = {"address": listener.getsockname(), "token": token, "rank": rank}
            given |= {"ranks": ranks, "store": str(room / "store")}
            command = [sys.executable, "-m", "fastslow.engine.parallel.worker"]
            # in another process group: Ctrl-C is for this process, which ends the others
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, env=environment, process_group=0
            )
            processes[rank] = process
            assert process.stdin is not None
            with process.stdin as pipe:
                pipe.write(json.dumps(given).encode())
        store = FileStore(str(room / "store"), ranks)
    except BaseException:
        for process in processes.values():
            process.kill()
            process.wait()
        listener.close()
        ended()
        raise
    return RankGroup(listener, token, ranks - 1, processes, ended), store


def _settle(ranks: int) -> tuple[int, Callable[[], None]]:
    """Threads of each rank, which talk through the loopback; and how to set back what this changes."""
    threads, asked = torch.get_num_threads(), os.environ.get(_INTERFACE)
    if sys.platform == "linux":
        os.environ[_INTERFACE] = "lo"
    each = threads if "OMP_NUM_THREADS" in os.environ else max(1, threads // ranks)
    torch.set_num_threads(each)

    def undo() -> None:
        torch.set_num_threads(threads)
        if asked is None:
            os.environ.pop(_INTERFACE, None)
        else:
            os.environ[_INTERFACE] = asked

    return each, undo
