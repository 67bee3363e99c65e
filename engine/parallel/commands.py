"""Commands of rank 0 to the other ranks, as JSON in frames over one TCP connection."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any, NamedTuple

import numpy as np

from fastslow.engine.rows import Rows, RunningRows
from fastslow.engine.types import Ints

_LENGTH = struct.Struct("<Q")
METHODS = "open", "free", "move", "states", "change_states", "forward", "draft"  # that rank 0 calls


def send(connection: socket.socket, frame: bytes) -> None:
    """Send one frame. OSError if the other side is gone."""
    connection.sendall(_LENGTH.pack(len(frame)) + frame)


def receive(connection: socket.socket) -> bytes | None:
    """The next frame; None if the other side is gone."""
    try:
        head = _exactly(connection, _LENGTH.size)
        return None if head is None else _exactly(connection, _LENGTH.unpack(head)[0])
    except OSError:
        return None


def send_json(connection: socket.socket, value: dict[str, Any]) -> None:
    """Send a JSON object as a frame."""
    send(connection, json.dumps(value).encode())


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    parts: list[bytes] = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class Command(NamedTuple):
    """The name of a method of `ShardWorker`, and what it is called with: JSON and arrays of whole numbers."""

    method: str
    arguments: tuple[Any, ...]


def pack(commands: Sequence[Command]) -> bytes:
    """All commands, in their order."""
    return json.dumps(commands, default=lambda array: array.tolist()).encode()


def unpack(message: bytes) -> Iterator[Command]:
    """Read the commands of a message that `pack` made. ValueError: a method that is none of METHODS."""
    for method, arguments in json.loads(message):
        if method not in METHODS:
            raise ValueError(f"rank 0 calls {method!r:.60}, and may call {', '.join(METHODS)}")
        yield Command(method, tuple(arguments))


ROWS = (
    *("tokens", "positions", "slots", "parents", "groups", "starts"),
    *("outputs", "only_best", "max_len", "feature_rows"),
)  # the fields of `Rows` that are arrays


def pack_rows(rows: Rows) -> dict[str, Any]:
    """Rows as an argument of a command; contexts as the runs of slots that they are made of."""
    arrays = {name: getattr(rows, name) for name in ROWS}
    contexts = [_runs(context) for context in rows.contexts]
    return {**arrays, "contexts": contexts, "running": [*map(astuple, rows.running or ())]}


def unpack_rows(values: dict[str, Any]) -> Rows:
    """Return the rows that `pack_rows` packed."""
    arrays: dict[str, Any] = {name: _ints(values[name]) for name in ROWS}
    arrays["only_best"] = arrays["only_best"].astype(np.bool_)
    contexts = tuple(_slots(_ints(f), _ints(s)) for f, s in values["contexts"])
    running = tuple(
        RunningRows(place, _ints(before), folds, stable, _ints(at), tuple(map(tuple, snapshots)))
        for place, before, folds, stable, at, snapshots in values["running"]
    )
    return Rows(**arrays, contexts=contexts, running=running or None)


def _runs(slots: Ints) -> tuple[Ints, Ints]:
    """The first slot and length of every ascending run."""
    edges = np.flatnonzero(np.diff(slots, prepend=-2) != 1)
    return slots[edges], np.diff(edges, append=len(slots))


def _slots(firsts: Ints, sizes: Ints) -> Ints:
    before = np.cumsum(sizes) - sizes
    return np.repeat(firsts - before, sizes) + np.arange(int(sizes.sum()))


def _ints(values: Sequence[int]) -> Ints:
    return np.asarray(values, dtype=np.int64)
