"""`python -m fastslow.cli` is the command `fastslow`, for `torchrun -m` too.

Of torchrun's processes the first runs the command; the others serve its model.
"""

from __future__ import annotations

import os

from fastslow.engine.cli.app import main

if __name__ == "__main__":
    if int(os.environ.get("RANK", "0")) > 0:
        from fastslow.engine.parallel.start import join

        join()
    main()
