"""One rank's part of a model and of its KV, and what it does when it is told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from fastslow.engine.backends.device import ops_for
from fastslow.engine.kv.storage import KVStorage
from fastslow.engine.model.checkpoint import Checkpoint
from fastslow.engine.parallel.collectives import NAMES, Collectives, Traffic, into_one
from fastslow.engine.parallel.commands import Command, CommandKind, split, unpack_rows
from fastslow.engine.parallel.decoder import PartDecoder
from fastslow.engine.parallel.place import RankPlace
from fastslow.engine.parallel.weights import part_reader, part_weights, weight_bytes
from fastslow.engine.types import Ints

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, slots=True)
class RankFacts:
    """Of one rank. Sizes in bytes.

    Attributes:
        pid: of its process.
        weights: that it holds.
        read: of the checkpoint, while loading.
        kv: of all its storages.
        sent: to other ranks so far, by collective.
    """

    pid: int
    weights: int
    read: int
    kv: int
    sent: dict[str, int]


class Part:
    """A rank's part.

    Args:
        place: of the rank.
        folder: of the checkpoint.
        dtype: to run in.
        device: of this rank.
        progress: draw a bar while reading.

    The process group must stand; all ranks make theirs at once.
    """

    def __init__(
        self,
        place: RankPlace,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        progress: bool,
    ) -> None:
        self.place = place
        self.device = device
        self._traffic = Traffic()
        ranks = torch.arange(place.parallel.ranks).view(place.homes, place.attention)
        patience = timedelta(seconds=place.parallel.timeout)
        home, _ = dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=patience)
        everyone = Collectives(dist.group.WORLD, place.parallel.ranks, self._traffic)
        checkpoint = Checkpoint.open(folder, place.config)
        with part_reader(checkpoint, place, progress) as read:
            weights = part_weights(place, ops_for(device.type), dtype, device, read)
        self._read = read.nbytes
        self._weights = weight_bytes(weights)
        self.decoder = PartDecoder(
            place, weights, Collectives(home, place.attention, self._traffic), everyone
        )
        self.storages: dict[int, KVStorage] = {}

    def obey(self, order: Command) -> None:
        """Do here what rank 0 does there."""
        parts = split(order.values)
        number = int(parts[0][0]) if parts else -1
        if order.kind is CommandKind.OPEN:
            layers, slots, dtype = parts[1].tolist()
            self.storages[number] = KVStorage(
                layers=layers,
                slots=slots,
                kv_heads=self.place.kv_heads,
                head_dim=self.place.config.head_dim,
                dtype=DTYPES[dtype],
                device=self.device,
            )
        elif order.kind is CommandKind.FREE:
            del self.storages[number]
        elif order.kind is CommandKind.MOVE:
            move(self.place, self.storages[number], parts[1], parts[2])
        elif order.kind is CommandKind.FORWARD:
            rows, kv = unpack_rows(parts[3]), self.storages[number]
            self.decoder.forward(rows, kv, parts[1].tolist(), parts[2].tolist())
        elif order.kind is CommandKind.REPORT:
            self.report()

    def report(self, kv: int | None = None) -> list[RankFacts]:
        """Every rank's facts, on every rank; all must ask at once.

        kv: bytes of this rank's storages, None = of those that it was told to open.
        """
        held = sum(s.nbytes for s in self.storages.values()) if kv is None else kv
        sent = [self._traffic[name] for name in NAMES]
        own = torch.tensor([os.getpid(), self._weights, self._read, held, *sent])
        own = own.to(self.device)
        whole = own.new_empty(self.place.parallel.ranks * len(own))
        into_one(whole, own)
        return [
            RankFacts(pid, weights, read, kept, dict(zip(NAMES, bytes_sent)))
            for pid, weights, read, kept, *bytes_sent in whole.view(-1, len(own)).tolist()
        ]


def move(place: RankPlace, kv: KVStorage, src: Ints, dst: Ints) -> None:
    """Copy the rows that live in this rank's home; see `KVStorage.move`.

    Raises:
        ValueError: a row would leave its home.
    """
    if (src // kv.slots != dst // kv.slots).any():
        raise ValueError("rows of keys and values cannot move between homes")
    own = src // kv.slots == place.home
    first = place.home * kv.slots
    if own.any():
        KVStorage.move(kv, src[own] - first, dst[own] - first)
