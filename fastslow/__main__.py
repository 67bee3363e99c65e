"""`python -m fastslow` is the command `fastslow`."""

from __future__ import annotations

from fastslow.engine.cli.app import main

main()
