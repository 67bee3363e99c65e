"""`python -m fastslow.engine.parallel.rank`: a rank that `load_parallel` started.

It reads from standard input where to find rank 0.
"""

from __future__ import annotations

import json
import sys

from torch._C._distributed_c10d import FileStore

from fastslow.engine.parallel.follow import follow


def main() -> None:
    """Serve until rank 0 is done."""
    told = json.loads(sys.stdin.buffer.read())
    store = FileStore(told["store"], told["ranks"])
    follow(tuple(told["address"]), told["token"], told["rank"], told["rank"], store)


if __name__ == "__main__":
    main()
