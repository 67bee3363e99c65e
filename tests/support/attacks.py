"""Bodies that hold up a server, and what a bystander sees of it meanwhile."""

import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

LARGEST = 4 * 2**20  # bytes of a body, where the settings say nothing
CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
MESSAGE = b'{"role": "user", "content": [{"type": "text", "text": "a"}]}'


def filled(begin: bytes, part: bytes, end: bytes, count: int = 10**9) -> bytes:
    """A body that is full of one part, `count` at most."""
    return begin + part * min((LARGEST - len(begin) - len(end)) // len(part), count) + end


def named(count: int) -> bytes:
    """Names of an object."""
    return b",".join(b'"%x":1' % number for number in range(count))


BOMBS: dict[str, tuple[bytes, bool]] = {
    "lists": (filled(b"[", b"[],", b"[]]"), True),
    "objects": (filled(b'{"messages": [', b"{},", b"{}]}"), True),
    "levels": (filled(b"", b"[", b""), True),
    "names": (b'{"stream_options": {%s}}' % named(400_000), True),
    "whole numbers": (filled(b'{"prompt": [', b"7,", b"7]}"), True),
    "fractions": (filled(b'{"prompt": [', b"0.5,", b"7]}"), True),
    "powers": (filled(b'{"prompt": [', b"1e5,", b"7]}"), True),
    "truth values": (filled(b'{"prompt": [', b"true,", b"7]}"), True),
    "nothing": (filled(b'{"prompt": [', b"null,", b"7]}"), True),
    "texts": (filled(b'{"prompt": [', b'"",', b'""]}'), True),
    "quotes": (filled(b'{"prompt": ', b'"', b""), True),
    "long numbers": (filled(b'{"prompt": [', b"7" * 4300 + b",", b"7]}"), True),
    "longest numbers": (filled(b'{"prompt": [', b"7" * 99 + b",", b"7]}"), False),
    "one name": (filled(b'{"', b"x", b'": 1}'), False),
    "one text": (filled(b'{"prompt": "', b"x", b'"}'), False),
    "backslashes": (filled(b'{"prompt": "', b"\\\\", b'"}'), False),
    "quotes in a text": (filled(b'{"prompt": "', b'\\"', b'"}'), False),
    "letters by number": (filled(b'{"prompt": "', b"\\u00e9", b'"}'), False),
    "pairs of letters": (filled(b'{"prompt": "', b"\\ud83d\\ude00", b'"}'), False),
    "spaces": (filled(b"", b" ", b"{}"), False),
    "tokens that fit": (filled(b'{"prompt": [', b"123456,", b'"x"]}', 131_000), False),
    "many prompts": (filled(b'{"prompt": [', b"[1],", b"[1]]}", 29_000), False),
    "names that fit": (b'{"stream_options": {%s}}' % named(29_000), False),
    "biases that fit": (b'{"prompt": "a", "logit_bias": {%s}}' % named(19_000), False),
    "messages that fit": (filled(b'{"messages": [', MESSAGE + b",", MESSAGE + b"]}", 4_000), False),
}
"""Each with whether it is refused for what its bytes hold, before it is read."""


def connected(url: str) -> socket.socket:
    """A client that sends what it likes."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=120)


def post(url: str, path: str, body: bytes) -> int:
    """The status of an answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connected(url) as connection:
        length = b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head.encode() + length)
        connection.sendall(body)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    return int(answer.split(maxsplit=2)[1])


def waits(url: str, until: Callable[[], bool]) -> list[float]:
    """Milliseconds that a bystander waits for each answer, sorted."""
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    found: list[float] = []
    with httpx.Client(base_url=url, timeout=60) as client:
        while not until():
            begin = time.perf_counter()
            assert client.post(CHAT, json=chat).status_code == 200
            found.append((time.perf_counter() - begin) * 1000)
    return sorted(found)


def waits_during(url: str, attack: Callable[[], None], seconds: float = 1.0) -> list[float]:
    """Waits of a bystander while an attack is under way, and for at least some seconds."""
    attacker = threading.Thread(target=attack)
    attacker.start()
    end = time.monotonic() + seconds
    gc.disable()  # its pauses are the bystander's own
    found = waits(url, lambda: not attacker.is_alive() and time.monotonic() > end)
    gc.enable()
    attacker.join()
    return found


def row(name: str, found: list[float]) -> str:
    """Of a table: p50, p99 and worst."""
    p50, p99 = (found[int(len(found) * share)] for share in (0.5, 0.99))
    return f"| {name} | {len(found)} | {p50:.1f} | {p99:.1f} | {found[-1]:.1f} |"


def begun_bodies(url: str, count: int, size: int) -> Iterator[socket.socket]:
    """Connections whose bodies lack their last byte."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent = head.encode() + b"Content-Length: %d\r\n\r\n" % size + b" " * (size - 1)
    for _ in range(count):
        connection = connected(url)
        connection.sendall(sent)
        yield connection


def pipelined(url: str, count: int) -> int:
    """Count the answers to requests that are sent at once."""
    with connected(url) as connection:
        one = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        whole = one * count + one[:-2] + b"Connection: close\r\n\r\n"
        sender = threading.Thread(target=connection.sendall, args=(whole,))
        sender.start()
        answers, last = 0, b""
        while data := connection.recv(1 << 20):
            answers += (last + data).count(b"HTTP/1.1 200") - last.count(b"HTTP/1.1 200")
            last = data[-11:]
        sender.join()
    return answers - 1


def memory_of(pid: int) -> int:
    """Bytes that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
