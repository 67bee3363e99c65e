"""A call that must be refused in one sentence."""

from collections.abc import Callable
from typing import Any

import pytest


def refused(said: str, call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """Make a call, and return what its ValueError says: one sentence in which a pattern is found."""
    with pytest.raises(ValueError, match=said) as error:
        call(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message, message
    return message
