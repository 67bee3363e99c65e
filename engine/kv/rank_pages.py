"""The pages of one rank."""

from __future__ import annotations

from typing import NamedTuple

from fastslow.engine.kv.pages import PagePool
from fastslow.engine.kv.prefix import PrefixIndex


class RankPages(NamedTuple):
    """The pages of one data-parallel rank, and which of them are published."""

    pool: PagePool
    prefix: PrefixIndex

    @property
    def available(self) -> int:
        """Empty pages, and cached ones that no request uses."""
        return self.pool.free + self.pool.idle
