"""The process that something was made in: a forked child has its memory, but none of its threads."""

from __future__ import annotations

import ctypes
import os


class HomeProcess:
    """Remembers the process that made it."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def here(self) -> bool:
        """Whether this is that process, and not one that was forked from it."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """RuntimeError with one sentence in any other process."""
        if not self.here:
            raise RuntimeError(
                f"this LLM was made in another process ({self._pid}), from which this one "
                f"({os.getpid()}) was forked without its threads: make a new LLM here"
            )


def _end_parallel_threads() -> None:
    """Give back the threads that OpenMP keeps for the thread that calls fork; it makes new ones when it
    needs them. A child would wait for them at its first product, for libgomp does not see the fork."""
    if (pause := getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)) is not None:
        pause(ctypes.c_int(2))  # omp_pause_hard


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_end_parallel_threads)
