"""Which tests need the compiled kernels."""

from __future__ import annotations

import pytest

from fastslow.engine.backends.cpu import library


def wanted() -> bool:
    """Whether kernels should run on this machine. Where they should and do not, tests fail and do not skip."""
    if library.level() == "off":
        return False
    try:
        library.find_compiler()
    except RuntimeError:
        return False
    return True


compiled = pytest.mark.skipif(not wanted(), reason="no compiler, or the kernels are switched off")
