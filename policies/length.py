"""How far to draft."""

from __future__ import annotations

from fastslow.engine.types import Load, Plan, RequestView


class FixedLength:
    """The same draft budget at every step, in the request's own groups.

    Args:
        nodes: most draft nodes a step; 0 = plain decoding.
    """

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes

    def plan(self, request: RequestView, load: Load) -> Plan:
        return Plan(self._nodes, request.groups)

    def record(self, drafted: int, accepted: int) -> None:
        """A fixed length learns nothing."""
