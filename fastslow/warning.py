"""What a newcomer should see although the log is off: a line of the log that is a Python warning too."""

from __future__ import annotations

import warnings

from loguru import logger


class FastslowWarning(UserWarning):
    """A call does something else than was probably meant."""


def warn(message: str) -> None:
    """Say it in the log and as a `FastslowWarning`."""
    logger.warning(message)
    warnings.warn(message, FastslowWarning, stacklevel=3)
