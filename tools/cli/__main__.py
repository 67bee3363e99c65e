"""`python -m fastslow` is the command `fastslow`, for `torchrun -m` too.

Of torchrun's processes the first runs the command; the others serve its model.
"""

from __future__ import annotations

import os

from fastslow.tools.cli.app import main


def run() -> None:
    """The command, by one process or by those of torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        main()
    from fastslow.engine.parallel.torchrun import join, let_go

    join()
    try:
        main()
    finally:
        let_go()


if __name__ == "__main__":
    run()
