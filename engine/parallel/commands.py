"""Commands of rank 0 to the other ranks: small whole numbers as bytes, in frames over one TCP connection."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from fastslow.engine.rows import Rows, RunningRows
from fastslow.engine.types import Ints

_LENGTH = struct.Struct("<Q")


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


class CommandKind(IntEnum):
    OPEN = 1  # a storage of keys and values: number, layers, slots of a data-parallel rank, dtype
    FREE = 2  # number
    MOVE = 3  # number, sources, targets
    FORWARD = 4  # number, layers, features, rows
    STATES = 5  # running states of a storage: number, (places, snapshots)
    CLEAR = 6  # number, (place, layers if not all)
    COPY = 7  # number, (source, target)
    SHIFT = 8  # number, place, sources, targets
    DRAFT = 9  # number, layer for multi-token prediction, rows


class Command(NamedTuple):
    kind: CommandKind
    values: Ints


def pack(commands: Sequence[Command]) -> bytes:
    """All commands, in their order, as int64."""
    return fields(*(np.append(kind, values) for kind, values in commands)).tobytes()


def unpack(message: bytes) -> Iterator[Command]:
    """Read the commands of a message that `pack` made."""
    for values in split(np.frombuffer(message, dtype=np.int64)):
        yield Command(CommandKind(int(values[0])), values[1:])


def fields(*parts: Sequence[int] | Ints) -> Ints:
    """Arrays of whole numbers, each with its length in front."""
    both = [p for part in parts for p in (_ints([len(part)]), _ints(part))]
    return np.concatenate(both) if both else np.empty(0, dtype=np.int64)


def split(values: Ints) -> list[Ints]:
    """The arrays that `fields` joined."""
    parts, at = list[Ints](), 0
    while at < len(values):
        size = int(values[at])
        parts.append(values[at + 1 : at + 1 + size])
        at += 1 + size
    return parts


ROWS = (
    *("tokens", "positions", "slots", "parents", "groups", "starts"),
    *("outputs", "only_best", "max_len", "feature_rows"),
)  # the fields of `Rows` that are arrays


def pack_rows(rows: Rows) -> Ints:
    """Rows as numbers; contexts as the runs of slots that they are made of."""
    runs = [part for context in rows.contexts for part in _runs(context)]
    work = [part for running in rows.running or () for part in _work(running)]
    return fields(*(getattr(rows, name) for name in ROWS), [len(work)], *work, *runs)


def unpack_rows(values: Ints) -> Rows:
    """Return the rows that `pack_rows` packed."""
    parts = split(values)
    arrays: dict[str, Any] = dict(zip(ROWS, parts))
    arrays["only_best"] = arrays["only_best"].astype(np.bool_)
    (count,), *parts = parts[len(ROWS) :]
    each = zip(*(parts[i:count:3] for i in range(3)), strict=True)
    running = tuple(_running(*work) for work in each)
    firsts, sizes = parts[count::2], parts[count + 1 :: 2]
    contexts = tuple(_slots(f, s) for f, s in zip(firsts, sizes, strict=True))
    return Rows(**arrays, contexts=contexts, running=running or None)


def _work(running: RunningRows) -> tuple[Ints, Ints, Ints]:
    """A request's work on its running states."""
    places = [place for both in running.snapshots for place in both]
    first = _ints([running.place, running.folds, running.stable, *places])
    return first, running.before, running.at


def _running(first: Ints, before: Ints, at: Ints) -> RunningRows:
    place, folds, stable, *places = first.tolist()
    snapshots = tuple(zip(places[::2], places[1::2], strict=True))
    return RunningRows(place, before, folds, stable, at, snapshots)


def _runs(slots: Ints) -> tuple[Ints, Ints]:
    """The first slot and length of every ascending run."""
    edges = np.flatnonzero(np.diff(slots, prepend=-2) != 1)
    return slots[edges], np.diff(edges, append=len(slots))


def _slots(firsts: Ints, sizes: Ints) -> Ints:
    before = np.cumsum(sizes) - sizes
    return np.repeat(firsts - before, sizes) + np.arange(int(sizes.sum()))


def _ints(values: Sequence[int] | Ints) -> Ints:
    return np.asarray(values, dtype=np.int64)
