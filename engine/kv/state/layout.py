"""The states that the layers of a decoder keep of a text, and the bytes that they take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

UNFOLDED = 48
"""Rows of a request that may lie beside a running state, not folded in yet."""


@dataclass(frozen=True, slots=True)
class RowState:
    """Rows for each token, in pages. window: how many a row sees, itself included; 0: all. values_in_keys: values are
    the first `value_dim` numbers of a key, and `beside` other numbers, such as keys of an index, are kept for them."""

    heads: int
    key_dim: int
    value_dim: int
    window: int = 0
    values_in_keys: bool = False
    beside: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of a head's key, and of what is kept beside it, if anything is."""
        other = self.beside if self.values_in_keys else self.value_dim
        return (self.key_dim, other) if other else (self.key_dim,)

    @property
    def numbers(self) -> int:
        """Of one token."""
        return self.heads * sum(self.widths)


@dataclass(frozen=True, slots=True)
class SharedState:
    """The rows of an earlier layer, and nothing of its own."""

    layer: int


@dataclass(frozen=True, slots=True)
class RunningState:
    """A state of each request, in float32 (float64 for a float64 model). shapes: of its parts. inputs: shapes of
    what a row adds to it, which is kept until the row is folded in."""

    shapes: tuple[tuple[int, ...], ...]
    inputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class RowsAndRunning:
    """Rows for each token, and a state of each request beside them."""

    rows: RowState
    running: RunningState


State: TypeAlias = "RowState | SharedState | RunningState | RowsAndRunning | None"
"""Of a layer; None: it keeps nothing."""


@dataclass(frozen=True, slots=True)
class StateLayout:
    """The states of all layers of a storage, in their order."""

    layers: tuple[State, ...]

    def __post_init__(self) -> None:
        for n, state in enumerate(self.layers):
            if isinstance(state, SharedState) and not (
                0 <= state.layer < n and rows_of(self.layers[state.layer]) is not None
            ):
                raise ValueError(
                    f"layer {n} shares rows of layer {state.layer}, which is no earlier one with rows"
                )

    @property
    def rows(self) -> dict[int, RowState]:
        """The layers that have rows of their own."""
        found = ((n, rows_of(state)) for n, state in enumerate(self.layers))
        return {n: rows for n, rows in found if rows is not None}

    @property
    def running(self) -> dict[int, RunningState]:
        """The layers that have a running state."""
        found = (
            (n, x.running if isinstance(x, RowsAndRunning) else x)
            for n, x in enumerate(self.layers)
        )
        return {n: state for n, state in found if isinstance(state, RunningState)}

    @property
    def window(self) -> int:
        """The longest one of its layers with rows; 0: none has one."""
        return max((row.window for row in self.rows.values()), default=0)

    def within(self, windows: bool) -> StateLayout:
        """Only its layers that have rows and a window, or rows and none."""
        rows = self.rows
        return StateLayout(
            tuple(
                rows[n] if n in rows and bool(rows[n].window) == windows else None
                for n in range(len(self.layers))
            )
        )

    def owner(self, layer: int) -> int | None:
        """The layer whose rows this one reads; None: it has no rows."""
        state = self.layers[layer]
        if isinstance(state, SharedState):
            return state.layer
        return None if rows_of(state) is None else layer

    @property
    def token_numbers(self) -> int:
        """Of a token's rows, over all layers."""
        return sum(state.numbers for state in self.rows.values())

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that a token's rows take, over all layers."""
        return self.token_numbers * dtype.itemsize

    def snapshot_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of a request's running states, over all layers."""
        return (
            sum(prod(shape) for state in self.running.values() for shape in state.shapes)
            * wide(dtype).itemsize
        )

    def request_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that a request takes besides its rows: running states, and inputs that are not folded in yet."""
        return self.snapshot_bytes(dtype) + UNFOLDED * self.row_bytes(dtype)

    def row_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of what a row adds to running states, over all layers: kept until it is folded in."""
        inputs = sum(prod(shape) for state in self.running.values() for shape in state.inputs)
        return inputs * wide(dtype).itemsize

    def alike(self, name: str) -> tuple[int, int, int]:
        """The number of layers with rows, and their KV heads and head size, the same in all. ValueError for others, with
        the name of the storage that cannot have them."""
        rows = list(self.rows.items())
        first = rows[0][1] if rows else RowState(1, 2, 2)
        for n, row in rows:
            if (
                replace(row, window=0) != replace(first, window=0)
                or row.key_dim != row.value_dim
                or row.values_in_keys
            ):
                raise ValueError(
                    f"{name} needs alike keys and values in all layers, and layer {n} has {_said(row)}, "
                    f"layer {rows[0][0]} {_said(first)}"
                )
        return len(rows), first.heads, first.key_dim

    def refuse_running(self, name: str) -> None:
        """Raise ValueError if a layer has a running state, which what is named cannot keep."""
        if self.running:
            raise ValueError(
                f"{name} keeps no running states, and layer {min(self.running)} has one: leave it out"
            )


def rows_of(state: State) -> RowState | None:
    """The rows of its own that a layer keeps; None: it keeps none."""
    rows = state.rows if isinstance(state, RowsAndRunning) else state
    return rows if isinstance(rows, RowState) else None


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type of running states beside rows of this one."""
    import torch

    return torch.promote_types(dtype, torch.float32)


def _said(row: RowState) -> str:
    values = "values in its keys" if row.values_in_keys else f"values of {row.value_dim}"
    return f"{row.heads} heads, keys of {row.key_dim} and {values}"
