"""Frames of bytes between rank 0 and another rank, over one TCP connection."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

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
