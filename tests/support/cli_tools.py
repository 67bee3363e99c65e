"""The command line, run in the test's own process."""

from __future__ import annotations

import pytest

from fastslow.tools.cli.app import main


def run(*arguments: object) -> int:
    """The exit code of `fastslow ARGUMENTS`."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)
