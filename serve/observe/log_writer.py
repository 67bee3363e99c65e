"""Log lines on their way to a file or a pipe, which never hold up who writes them."""

from __future__ import annotations

import json
import os
import threading
from collections import deque

MOST_WAITING = 10_000  # lines; later ones are lost
EVERY = 0.05  # seconds between writes
BATCH = 64 << 10  # bytes of a write, about
LAST = 2.0  # seconds that `close` waits


class LogWriter:
    """Writes lines in a thread of its own, a few times a second: to wake that thread for each line would take
    the interpreter from who is answering.

    A full disk, a limit of file size, a closed pipe or one that nobody reads cost lines and nothing else. How
    many were lost is written where writing works again.

    Args:
        number: file descriptor; it stays open.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._lines: deque[bytes] = deque()
        self._torn = False  # the last line was written in part
        self._refused = 0  # lines that came when there were enough
        self._failed = 0  # lines that could not be written
        self._told = 0  # of the lost ones
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Lines that are nowhere."""
        return self._refused + self._failed

    def write(self, line: str) -> None:
        """Take a line, with its end. Never blocks, never raises."""
        if len(self._lines) >= MOST_WAITING:
            self._refused += 1
        else:
            self._lines.append(line.encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Write what waits, for two seconds at most."""
        self._ended.set()
        self._thread.join(LAST)

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(EVERY)
            while self._lines and self._write_some():
                pass

    def _write_some(self) -> bool:
        """Write some lines in one go; False where that failed, and it is time for a pause."""
        lines: list[bytes] = []
        lost = self.lost
        if lost > self._told:
            lines.append(_confession(lost))
        told, size = len(lines), 0
        while self._lines and size < BATCH:
            lines.append(self._lines.popleft())
            size += len(lines[-1])
        whole = self._write(lines)
        if whole >= told:
            self._told = lost
        self._failed += len(lines) - max(whole, told)
        return whole == len(lines)

    def _write(self, lines: list[bytes]) -> int:
        """How many were written whole."""
        data = memoryview((b"\n" if self._torn else b"") + b"".join(lines))
        at = -int(self._torn)  # bytes of the lines that are written
        while data:
            try:
                written = os.write(self._number, data)
            except InterruptedError:
                continue
            except OSError:  # full, closed, or it would block
                break
            data, at = data[written:], at + written
        whole, end = 0, 0
        for line in lines:
            if end + len(line) > at:
                break
            whole, end = whole + 1, end + len(line)
        self._torn = at > end or (self._torn and at < 0)
        return whole


def _confession(lost: int) -> bytes:
    said = {"level": "WARNING", "message": f"{lost} log lines were lost", "logger": __name__}
    return json.dumps(said).encode() + b"\n"
