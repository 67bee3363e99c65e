"""Log lines on their way to a file or a pipe, which never hold up who writes them."""

from __future__ import annotations

import os
import queue
import threading
import time

MOST_WAITING = 10_000  # lines; later ones are lost
PAUSE = 0.2  # seconds after a write that failed
LAST = 2.0  # seconds that `close` waits


class LogWriter:
    """Writes lines in a thread of its own.

    A full disk, a limit of file size, a closed pipe or one that nobody reads cost lines and nothing else. How
    many were lost is written where writing works again.

    Args:
        number: file descriptor; it stays open.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._lines: queue.Queue[bytes | None] = queue.Queue(MOST_WAITING)
        self._torn = False  # the last line was written in part
        self.lost = 0
        self._told = 0  # of the lost ones
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Take a line, with its end. Never blocks, never raises."""
        try:
            self._lines.put_nowait(line.encode("utf-8", "backslashreplace"))
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Write what waits, for two seconds at most."""
        end = time.monotonic() + LAST
        while self._thread.is_alive() and time.monotonic() < end:
            try:
                self._lines.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join(max(0.0, end - time.monotonic()))

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            if self.lost > self._told and self._write(self._confession()):
                self._told = self.lost
            if not self._write(line):
                self.lost += 1
                time.sleep(PAUSE)

    def _confession(self) -> bytes:
        return b'{"level": "WARNING", "message": "%d log lines were lost"}\n' % self.lost

    def _write(self, line: bytes) -> bool:
        """Whether it was written whole."""
        data = b"\n" + line if self._torn else line
        while data:
            try:
                written = os.write(self._number, data)
            except InterruptedError:
                continue
            except OSError:  # full, closed, or would block
                return False
            data = data[written:]
            self._torn = data != b""
        return True
