"""The number of pages that the KV cache gets."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from pydantic import ByteSize

from fastslow.engine.host.machine import free_memory, whole_memory
from fastslow.engine.kv.state.layout import UNFOLDED, StateLayout
from fastslow.engine.kv.state.storage import KVStorage
from fastslow.engine.params import shown

DEFAULT_SHARE = 0.3  # of the memory that is free once the weights are loaded

EACH = 4096  # tokens in pages for each snapshot of running states: a chat of 8,000 tokens has two

MOST_BYTES = 1e30  # no machine has them

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


class NoRoom(ValueError):
    """The memory for pages cannot hold one request of the whole context."""


class KVBudget(NamedTuple):
    """Pages, places of running states, and places of their snapshots."""

    pages: int
    places: int = 0
    snapshots: int = 0


def page_budget(
    kv_memory: float | str | None,
    *,
    page_bytes: int,
    page_size: int,
    context: int,
    max_requests: int,
    device: torch.device | str,
    dp_ranks: int = 1,
    request_bytes: int = 0,
    snapshot_bytes: int = 0,
) -> KVBudget:
    """Return how many pages of `page_bytes` bytes and `page_size` tokens to allocate.

    request_bytes: running states of a request. There are places for `max_requests` of them, or for as many as find a
    snapshot of `snapshot_bytes` and EACH tokens of pages beside: then fewer requests run at a time. The rest is
    divided between snapshots and pages in this proportion.

    kv_memory: an int is bytes, and so is text such as "2GiB", "500MB" or "4096"; a float, at most
    1.0, is a share of the memory that is free on `device` now; None is a share of 0.3. A share is
    cut at what `max_requests` requests of `context` tokens can use, with two snapshots each; bytes are taken as they
    are, for more pages keep more prefixes cached.
    dp_ranks: data-parallel ranks that share the pages; a request's are all of one.
    Raises ValueError for an amount that is not understood or that the device does not have; NoRoom for one that
    cannot hold one request of `context` tokens.
    """
    one, most = max(1, -(-context // page_size)), None
    if kv_memory is None or isinstance(kv_memory, float):
        share = DEFAULT_SHARE if kv_memory is None else kv_memory
        if not 0.0 < share <= 1.0:
            raise ValueError(f"kv_memory is a share of {share}, but must be above 0 and at most 1")
        memory, most = int(free_memory(device) * share), one * max_requests
    else:
        memory = parse_bytes(kv_memory) if isinstance(kv_memory, str) else kv_memory
        memory = max(memory, -int(MOST_BYTES))  # which a message can show
        if memory > whole_memory(device):
            raise too_much(kv_memory, device)
    needed, left, places, snapshots = one * dp_ranks * page_bytes, memory, 0, 0
    if request_bytes:
        each = snapshot_bytes + min(EACH // page_size, one) * page_bytes
        able = left // (request_bytes + each), (left - needed) // (request_bytes + snapshot_bytes)
        places = max(1, min(max_requests, *able))
        left -= places * request_bytes
        if snapshot_bytes:
            snapshots = max(0, min(left // each, (left - needed) // snapshot_bytes))
        snapshots = snapshots if most is None else min(snapshots, 2 * max_requests)
        left -= snapshots * snapshot_bytes
    if page_bytes:
        pages = left // page_bytes if most is None else min(left // page_bytes, most)
    else:  # no layer has rows: running states are all that a text takes
        pages = one * (places + snapshots) if left >= 0 else 0
    if pages // dp_ranks < one:
        where = f" on each of {dp_ranks} data-parallel ranks" if dp_ranks > 1 else ""
        raise NoRoom(
            f"kv_memory is {format_bytes(memory)}, but one request with a context of {context} "
            f"tokens{where} needs {format_bytes(needed + request_bytes)}"
        )
    return KVBudget(pages, places, min(snapshots, pages))


def window_ring(layout: StateLayout, page_size: int, context: int, rows: int) -> int:
    """Most pages that a request needs in layers with windows, where a step reads so many rows of text (0: whole texts);
    0: they would save less than half of a context's, or there are no such layers."""
    ring = 2 + -(-(layout.window + rows + UNFOLDED) // page_size)
    pays = rows and layout.window and 2 * ring * page_size <= context
    return ring if pays else 0


def context_bytes(layout: StateLayout, dtype: torch.dtype, context: int, rows: int) -> int:
    """Bytes of the rows of a request of so many tokens on a CPU, in steps of so many rows of text."""
    size = KVStorage.page_size
    if not (ring := window_ring(layout, size, context, rows)):
        return context * layout.token_bytes(dtype)
    all_rows, few = (layout.within(windows).token_bytes(dtype) for windows in (False, True))
    return context * all_rows + ring * size * few


def parse_bytes(text: str, name: str = "kv_memory") -> int:
    """Bytes in "2GiB" (powers of 1024), "2GB" or "2G" (powers of 1000), or plain "2048"; else ValueError."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{name} is {shown(text)}, but must be like 2GiB, 500MB or a number of bytes"
        )
    number, unit, binary = match.groups()
    power = _UNITS[unit.upper()]
    return int(min(float(number) * (1024 if binary else 1000) ** power, MOST_BYTES))


def too_much(kv_memory: object, device: torch.device | str) -> ValueError:
    """For an amount that is not to be had."""
    free = format_bytes(free_memory(device))
    return ValueError(f"kv_memory={shown(kv_memory)} is more than there is: {free} are free")


def format_bytes(count: int) -> str:
    """A number of bytes for people: "1.5 GiB"."""
    return ByteSize(count).human_readable(separator=" ")
