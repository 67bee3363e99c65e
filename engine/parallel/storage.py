"""Keys and values that lie on many ranks, as rank 0 sees them."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from typing import Any, ClassVar

from fastslow.engine.kv.storage import KVStorage
from fastslow.engine.parallel.orders import Kind, Order, fields
from fastslow.engine.parallel.part import DTYPES, move
from fastslow.engine.parallel.place import Place
from fastslow.engine.types import Ints

_numbers = itertools.count()


class PartedStorage(KVStorage):
    """Rank 0's own rows, and orders for the other ranks to do the same with theirs.

    Slots are counted over all homes, one home's after the other's; `slots`, `k` and `v` are of rank
    0's home and heads. Orders wait in `orders` and go out with the next step.

    Attributes:
        number: by which the other ranks know this storage.
    """

    place: ClassVar[Place]
    orders: ClassVar[deque[Order]]

    def __init__(self, *, slots: int, **shape: Any) -> None:
        own = -(-slots // self.place.homes)
        super().__init__(slots=own, **{**shape, "kv_heads": self.place.kv_heads})
        self.number = next(_numbers)
        told = (len(self.k), own, DTYPES.index(self.dtype))
        self.orders.append(Order(Kind.OPEN, fields([self.number], told)))
        gone = Order(Kind.FREE, fields([self.number]))
        weakref.finalize(self, self.orders.append, gone).atexit = False

    def move(self, src: Ints, dst: Ints) -> None:
        move(self.place, self, src, dst)
        self.orders.append(Order(Kind.MOVE, fields([self.number], src, dst)))


def parted_storage(own: Place, waiting: deque[Order], shared: bool) -> type[PartedStorage]:
    """The storage of one model.

    Args:
        own: of rank 0.
        waiting: orders that go out with the next step.
        shared: whether all ranks' rows lie in one memory, as on a CPU.
    """

    class Storage(PartedStorage):
        place = own
        orders = waiting
        homes = own.homes
        share = own.kv_heads / own.config.kv_heads * (own.attention if shared else 1 / own.homes)

    return Storage
