"""What stands where a closed LLM had its model."""

from __future__ import annotations

from typing import NoReturn


class Closed:
    """Whoever still asks it for something is told."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError("this LLM is closed; make a new one")
