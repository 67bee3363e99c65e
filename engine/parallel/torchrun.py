"""Job of torchrun: this process among those that it started."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# Functions import what needs torch.distributed: torch may have been built without.
_ADDRESS = "fastslow/address"
_used = False  # the other ranks of a job serve one model


@dataclass(frozen=True, slots=True)
class Launched:
    """This process in a torchrun job. local: its rank on this machine. alone: no other machine has ranks."""

    rank: int
    ranks: int
    local: int
    alone: bool

    @classmethod
    def from_environment(cls) -> Launched | None:
        """None if torchrun did not start this process."""
        environment = os.environ
        if "TORCHELASTIC_RUN_ID" not in environment or "RANK" not in environment:
            return None
        ranks = int(environment["WORLD_SIZE"])
        alone = int(environment.get("LOCAL_WORLD_SIZE", ranks)) == ranks
        return cls(int(environment["RANK"]), ranks, int(environment["LOCAL_RANK"]), alone)

    def listen(self) -> tuple[socket.socket, str, Store]:
        """Rank 0 listens, and lets the others know where. ValueError: not a second time."""
        from torch.distributed.distributed_c10d import PrefixStore

        global _used
        if _used:
            raise ValueError("the ranks of a torchrun job serve one LLM, and theirs was closed")
        _used = True
        store = self._store()
        host = "127.0.0.1" if self.alone else os.environ["MASTER_ADDR"]
        listener = socket.create_server(("127.0.0.1" if self.alone else "", 0))
        token = secrets.token_hex(16)
        given = {"address": [host, listener.getsockname()[1]], "token": token}
        store.set(_ADDRESS, json.dumps(given))
        return listener, token, PrefixStore("fastslow", store)

    def serve(self) -> None:
        """Any rank but the first: serve rank 0 until it is done."""
        from torch.distributed.distributed_c10d import PrefixStore

        from fastslow.engine.parallel.worker import worker_loop

        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        store = self._store()
        while not store.check([_ADDRESS]):
            time.sleep(0.05)
        given = json.loads(store.get(_ADDRESS))
        if given:
            address = (given["address"][0], given["address"][1])
            worker_loop(
                address, given["token"], self.rank, self.local, PrefixStore("fastslow", store)
            )

    def _store(self) -> Store:
        from torch.distributed.rendezvous import rendezvous

        store: Store = next(iter(rendezvous("env://")))[0]
        return store


def _end_with(parent: int) -> None:
    """torchrun itself may be killed: its processes would be orphans."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def join() -> None:
    """Under torchrun, every process but the first serves the first one's model, and exits."""
    launched = Launched.from_environment()
    if launched is not None and launched.rank:
        launched.serve()
        raise SystemExit(0)


def let_go() -> None:
    """Under torchrun, the first process is done: if it loaded no model, the others stop waiting."""
    if (launched := Launched.from_environment()) is not None and not _used:
        launched._store().set(_ADDRESS, json.dumps({}))
