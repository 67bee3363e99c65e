"""A model that several ranks run, and its keys and values, as the engine and the drafters see them; and how its
ranks begin: started by this process, or found where `torchrun` started them."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.distributed as dist
from loguru import logger
from torch._C._distributed_c10d import FileStore
from torch.distributed.distributed_c10d import Store

from fastslow.engine.backends.device import choose_device
from fastslow.engine.backends.loader import heads_there, pick_dtype
from fastslow.engine.backends.torch.mtp import MtpDecoder
from fastslow.engine.checkpoint.checkpoint import Checkpoint
from fastslow.engine.checkpoint.quantised import Scheme
from fastslow.engine.kv.state.layout import StateLayout
from fastslow.engine.kv.state.running import RunningStates
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.model.base import check_layers, check_step, inputs_of
from fastslow.engine.model.config import ModelConfig
from fastslow.engine.parallel.commands import Command, pack, pack_rows
from fastslow.engine.parallel.rank_group import RankError, RankGroup
from fastslow.engine.parallel.sharding import Parallel, RankShard
from fastslow.engine.parallel.torchrun import Launched
from fastslow.engine.parallel.worker import RankJob, ShardWorker, move
from fastslow.engine.rows import Rows
from fastslow.engine.types import Ints, ModelOutput

_INTERFACE = "GLOO_SOCKET_IFNAME"
_numbers = itertools.count()


class ShardedStates(RunningStates):
    """Rank 0's own running states, in the place of whole ones, and commands for the other ranks to do the same."""

    def __init__(self, whole: RunningStates, kv: ShardedStorage) -> None:
        sizes = whole.places, whole.snapshots
        super().__init__(kv.layout, *sizes, kv.dtype, kv.device)
        self.bytes, self._tell = whole.bytes, kv.tell
        self._tell("states", *sizes)

    def clear(self, place: int, layers: Collection[int] | None = None) -> None:
        super().clear(place, layers)
        self._tell("change_states", "clear", place, [*layers] if layers else None)

    def copy(self, source: int, target: int) -> None:
        super().copy(source, target)
        self._tell("change_states", "copy", source, target)

    def move(self, place: int, src: Sequence[int], dst: Sequence[int]) -> None:
        super().move(place, src, dst)
        self._tell("change_states", "move", place, src, dst)


class ShardedStorage(KVStorage):
    """Rank 0's own rows, and commands for the other ranks to do the same with theirs.

    Slots are counted over all data-parallel ranks, one's after the other's; `slots`, `k` and `v` are of rank
    0's share and heads. Commands wait and go out with the next step. number: by which ranks know this storage."""

    tile = 0
    has_windows = False
    shard: ClassVar[RankShard]
    commands: ClassVar[deque[Command]]
    _states: RunningStates | None = None

    def __init__(
        self, layout: StateLayout, slots: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        own = -(-slots // self.shard.dp_ranks)
        super().__init__(self.shard.local.state_layout, own, dtype, device)
        self.number = next(_numbers)
        self.tell("open", own, str(self.dtype).removeprefix("torch."))
        gone = Command("free", (self.number,))
        weakref.finalize(self, self.commands.append, gone).atexit = False

    @property
    def running(self) -> RunningStates | None:
        return self._states

    @running.setter
    def running(self, whole: RunningStates | None) -> None:
        self._states = None if whole is None else ShardedStates(whole, self)

    def only(self, layer: int) -> Self:
        raise ValueError("one layer's rows cannot be used alone where several ranks have them")

    def move(self, src: Ints, dst: Ints) -> None:
        move(self.shard, self, src, dst)
        self.tell("move", src, dst)

    def tell(self, method: str, *arguments: Any) -> None:
        """Let the other ranks do something with their own."""
        self.commands.append(Command(method, (self.number, *arguments)))


def sharded_storage(own: RankShard, waiting: deque[Command], shared: bool) -> type[ShardedStorage]:
    """The storage of one model; shared: whether all ranks' rows lie in one memory, as on a CPU."""

    class Storage(ShardedStorage):
        shard = own
        commands = waiting
        dp_ranks = own.dp_ranks
        share = (
            own.kv_heads
            / own.alike.attention.kv_heads
            * (own.attention if shared else 1 / own.dp_ranks)
        )

    return Storage


class ParallelModel:
    """Rank 0's shard; every step goes to the other ranks first, which have loaded theirs."""

    def __init__(self, worker: ShardWorker, rank_group: RankGroup, dtype: torch.dtype) -> None:
        self.config: ModelConfig = worker.shard.config
        self.parallel = worker.shard.parallel
        self.dtype = dtype
        self.device = worker.device
        self._worker = worker
        self._rank_group = rank_group
        self._waiting: deque[Command] = deque()
        self.storage = sharded_storage(worker.shard, self._waiting, worker.device.type == "cpu")
        self.layers: tuple[int, ...] = tuple(range(len(self.config.layers)))
        self._turn = threading.Lock()  # all ranks must get the commands of two threads in one order
        self._shut = weakref.finalize(self, _shut, rank_group)

    @cached_property
    def mtp(self) -> ParallelMtp | None:
        return ParallelMtp(self) if self.config.mtp is not None else None

    @property
    def pids(self) -> dict[int, int]:
        """Process ids of the other ranks."""
        return self._rank_group.pids

    def forward(self, rows: Rows, kv: KVStorage, features: tuple[int, ...] = ()) -> ModelOutput:
        """As `Decoder.forward`. RankError: a rank failed or is gone, and no later step will run."""
        check_step(rows, kv, self.storage, features, self.layers)
        assert isinstance(kv, ShardedStorage)
        named = kv.number, self.layers, features, pack_rows(rows)
        decoder, command = self._worker.decoder, Command("forward", named)
        own = partial(decoder.forward, rows, kv, self.layers, features)
        return self.run(rows, kv, command, own)

    def run(
        self, rows: Rows, kv: KVStorage, command: Command, own: Callable[[], ModelOutput | None]
    ) -> ModelOutput:
        """Run a step on all ranks: own, on this one; command, on the others. Errors are those of `forward`."""
        self._check_dp_ranks(rows, kv.slots)
        with self._turn:
            self._send(command)
            try:
                output = own()
            except BaseException as error:
                self._rank_group.explain(error)
                raise
        assert output is not None
        return output

    def layer_subset(self, layers: Sequence[int]) -> ParallelModel:
        kept = object.__new__(ParallelModel)
        kept.__dict__.update(self.__dict__)
        kept.layers = check_layers(layers, self.layers)
        return kept

    def close(self) -> None:
        """End the other ranks. Closing twice is fine."""
        if self._rank_group.home.here:  # a fork may have copied a lock that is held
            with self._turn:
                self._shut()

    def _check_dp_ranks(self, rows: Rows, size: int) -> None:
        if self.storage.dp_ranks == 1:
            return
        for b, context in enumerate(rows.contexts):
            own = rows.slots[rows.starts[b] : rows.starts[b + 1]]
            ranks = np.unique(np.concatenate((context, own)) // size)
            if len(ranks) > 1:
                raise ValueError(
                    f"request {b} of the step has slots on data-parallel ranks {ranks.tolist()}"
                )

    def _send(self, command: Command) -> None:
        self._waiting.append(command)
        commands = [self._waiting.popleft() for _ in range(len(self._waiting))]
        self._rank_group.send(pack(commands))


class ParallelMtp(MtpDecoder):
    """`MtpModel` of a `ParallelModel`: its hidden states lie on rank 0, and every pass shares them out."""

    def __init__(self, model: ParallelModel) -> None:
        super().__init__(model._worker.decoder.weights)
        self._model = model

    def forward(self, rows: Rows, kv: KVStorage, head: int = -1) -> ModelOutput:
        model = self._model
        check_step(rows, kv, model.storage, (), ())
        assert isinstance(kv, ShardedStorage)
        n, inputs = head % self.heads, inputs_of(rows)
        command = Command("draft", (kv.number, n, pack_rows(rows)))
        own = partial(model._worker.decoder.draft, rows, inputs, kv, n)
        return model.run(rows, kv, command, own)


def _shut(rank_group: RankGroup) -> None:
    if not rank_group.home.here:
        return
    rank_group.close()
    if dist.is_initialized():
        dist.destroy_process_group()


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
    heads = heads_there(folder, config, Checkpoint.open(folder, config))
    launched = Launched.from_environment()
    if launched is not None and launched.ranks != parallel.ranks:
        raise ValueError(
            f"parallel {parallel} takes {parallel.ranks} ranks, torchrun started {launched.ranks}"
        )
    _say(shard, heads > 0, where)
    named = str(picked).removeprefix("torch.")
    job = RankJob(str(folder.resolve()), parallel.model_dump(), named, where.type, heads)
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


def _say(shard: RankShard, drafting: bool, device: torch.device) -> None:
    a, parallel = shard.alike.attention, shard.parallel
    if drafting and shard.config.mtp is None:
        logger.warning("several ranks do not run the layer for multi-token prediction")
    if shard.attention < parallel.ep * parallel.tp:
        logger.info(
            "{} heads over {} KV heads do not divide by ep * tp = {}: attention runs {} times side by "
            "side, each for other requests",
            a.heads,
            a.kv_heads,
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
            command = [sys.executable, "-P", "-m", "fastslow.engine.parallel.worker"]
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
