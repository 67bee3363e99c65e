"""What every rank but the first does: it loads its part, and does what it is told until it is over.

It ends when rank 0 says so or is gone, whatever it is doing then.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from queue import SimpleQueue
from typing import NoReturn

import torch.distributed as dist
from loguru import logger
from torch._C._distributed_c10d import FileStore
from torch.distributed.distributed_c10d import Store

from fastslow.engine.parallel.commands import receive, send_json, unpack
from fastslow.engine.parallel.job import RankJob


def worker_loop(
    address: tuple[str, int], token: str, rank: int, local: int, store: Store
) -> NoReturn:
    """Serve rank 0 at `address` until it is done; then the process ends.

    Args:
        address: where rank 0 listens.
        token: that it knows its ranks by.
        rank: of this process.
        local: among those of this machine.
        store: in which the ranks meet.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for rank 0, which ends the others
    logger.remove()
    logger.add(sys.stderr, level="WARNING", format=f"rank {rank}: {{message}}")
    try:
        connection = socket.create_connection(address)
    except OSError:
        os._exit(1)  # rank 0 ended meanwhile
    send_json(connection, {"token": token, "rank": rank, "pid": os.getpid()})
    frames: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, frames), daemon=True).start()
    try:
        job = RankJob(**json.loads(frames.get()))
        with job.met(rank, local, store):
            part = job.part(rank, local, progress=False)
            send_json(connection, {"loaded": rank})
            while frame := frames.get():
                for order in unpack(frame):
                    part.obey(order)
        dist.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - rank 0 must hear of it, whatever it is
        why = " ".join(f"{type(error).__name__}: {error}".split())
        try:
            send_json(connection, {"failed": why})
        finally:
            os._exit(1)  # others may be waiting for this rank inside a collective
    os._exit(0)  # at once: what torch tears down at the end of a process took five seconds


def _listen(connection: socket.socket, frames: SimpleQueue[bytes]) -> None:
    while (frame := receive(connection)) is not None:
        frames.put(frame)
        if not frame:  # rank 0 is done
            return
    os._exit(1)  # rank 0 is gone


def main() -> None:
    """Serve until rank 0 is done."""
    told = json.loads(sys.stdin.buffer.read())
    store = FileStore(told["store"], told["ranks"])
    worker_loop(tuple(told["address"]), told["token"], told["rank"], told["rank"], store)


if __name__ == "__main__":
    main()
