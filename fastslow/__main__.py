"""`python -m fastslow` is the command `fastslow`."""

from __future__ import annotations

import runpy

# Not an import: the command line is built on this package, not the other way round.
runpy.run_module("fastslow.tools.cli", run_name="__main__", alter_sys=True)
