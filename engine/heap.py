"""Giving memory that was freed back to the system."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def give_back() -> None:
    """Give the system what the heap keeps for later, where the C library can (glibc).

    For the end of something large that happens once: a parse leaves tens of MB of freed pieces
    behind, which nothing of the same sizes asks for again. Takes a few milliseconds.
    """
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library; Windows
        return None
