"""`python -m fastslow` is the command `fastslow`."""

from __future__ import annotations

from fastslow.tools.cli.app import main

main()
